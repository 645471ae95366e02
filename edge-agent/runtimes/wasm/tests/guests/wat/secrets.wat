;; Prints "env XXXXXXXX file YYYYYYYY": FNV-1a of its whole environment as WASI hands it over, and of the file `key` in the
;; first folder that it was given ("--------" if there is none). Then says whether that file can be written, and ends, or
;; sleeps for ever if it has a first argument.
(module
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $env_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $env (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 8)
  (data (i32.const 512) "env -------- file --------\n")
  (data (i32.const 576) "it can be written\n")
  (data (i32.const 608) "key")
  ;; A subscription at 128: clock, monotonic, an hour in nanoseconds, relative.
  (data (i32.const 144) "\01\00\00\00")
  (data (i32.const 152) "\00\a0\b8\30\46\03\00\00")
  (func $fnv (param $at i32) (param $length i32) (result i32) (local $hash i32) (local $end i32)
    (local.set $hash (i32.const 0x811c9dc5))
    (local.set $end (i32.add (local.get $at) (local.get $length)))
    (loop $next
      (if (i32.lt_u (local.get $at) (local.get $end))
        (then
          (local.set $hash (i32.mul
            (i32.xor (local.get $hash) (i32.load8_u (local.get $at))) (i32.const 0x01000193)))
          (local.set $at (i32.add (local.get $at) (i32.const 1)))
          (br $next))))
    (local.get $hash))
  (func $hex (param $value i32) (param $at i32) (local $n i32) (local $digit i32)
    (loop $next
      (local.set $digit (i32.and
        (i32.shr_u (local.get $value) (i32.sub (i32.const 28) (i32.mul (local.get $n) (i32.const 4)))) (i32.const 15)))
      (i32.store8 (i32.add (local.get $at) (local.get $n))
        (i32.add (local.get $digit)
          (if (result i32) (i32.lt_u (local.get $digit) (i32.const 10)) (then (i32.const 48)) (else (i32.const 87)))))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $n) (i32.const 8)))))
  (func $print (param $at i32) (param $length i32)
    (i32.store (i32.const 16) (local.get $at))
    (i32.store (i32.const 20) (local.get $length))
    (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 24))))
  ;; The file's descriptor, or -1; `rights` 2 reads, 64 writes.
  (func $file (param $rights i64) (result i32)
    (if (result i32)
      (call $open (i32.const 3) (i32.const 0) (i32.const 608) (i32.const 3) (i32.const 0)
        (local.get $rights) (i64.const 0) (i32.const 0) (i32.const 32))
      (then (i32.const -1))
      (else (i32.load (i32.const 32)))))
  (func (export "_start") (local $fd i32)
    (drop (call $env_sizes (i32.const 0) (i32.const 4)))
    (drop (call $env (i32.const 1024) (i32.const 65536)))
    (call $hex (call $fnv (i32.const 65536) (i32.load (i32.const 4))) (i32.const 516))
    (local.set $fd (call $file (i64.const 2)))
    (if (i32.ne (local.get $fd) (i32.const -1))
      (then
        (i32.store (i32.const 16) (i32.const 262144))
        (i32.store (i32.const 20) (i32.const 131072))
        (drop (call $read (local.get $fd) (i32.const 16) (i32.const 1) (i32.const 24)))
        (call $hex (call $fnv (i32.const 262144) (i32.load (i32.const 24))) (i32.const 530))))
    (call $print (i32.const 512) (i32.const 27))
    (if (i32.ne (call $file (i64.const 64)) (i32.const -1))
      (then (call $print (i32.const 576) (i32.const 18))))
    (drop (call $args_sizes (i32.const 0) (i32.const 4)))
    (if (i32.gt_u (i32.load (i32.const 0)) (i32.const 1))
      (then
        (loop $again
          (drop (call $poll (i32.const 128) (i32.const 256) (i32.const 1) (i32.const 320)))
          (br $again))))))
