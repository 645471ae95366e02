;; Prints 64 bytes 20,000 times, then ends.
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\20\00\00\00\40\00\00\00")
  (data (i32.const 32) "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde\n")
  (func (export "_start") (local $left i32)
    (local.set $left (i32.const 20000))
    (loop $again
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))
      (local.set $left (i32.sub (local.get $left) (i32.const 1)))
      (br_if $again (local.get $left)))))
