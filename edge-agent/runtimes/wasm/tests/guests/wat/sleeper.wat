;; Says a line and a metric, then sleeps for an hour at a time.
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 0) "\20\00\00\00\1e\00\00\00")
  (data (i32.const 32) "awake\n@metric naps 1\nno newline")
  ;; A subscription at 128: clock, monotonic, an hour in nanoseconds, relative.
  (data (i32.const 144) "\01\00\00\00")
  (data (i32.const 152) "\00\a0\b8\30\46\03\00\00")
  (func (export "_start")
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))
    (loop $again
      (drop (call $poll (i32.const 128) (i32.const 256) (i32.const 1) (i32.const 320)))
      (br $again))))
