;; Opens the file named by its first argument in the first folder it was given, with the flags that its second
;; argument asks for ("r" to read, "w" to create), and exits with the error number of WASI, 0 if it worked.
(module
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func $length (param $at i32) (result i32) (local $end i32)
    (local.set $end (local.get $at))
    (loop $next
      (if (i32.load8_u (local.get $end))
        (then (local.set $end (i32.add (local.get $end) (i32.const 1))) (br $next))))
    (i32.sub (local.get $end) (local.get $at)))
  (func (export "_start") (local $path i32) (local $write i32)
    (drop (call $args (i32.const 64) (i32.const 4096)))
    (local.set $path (i32.load (i32.const 68)))
    (local.set $write (i32.eq (i32.load8_u (i32.load (i32.const 72))) (i32.const 119)))
    (call $exit
      (call $open (i32.const 3) (i32.const 0) (local.get $path) (call $length (local.get $path))
        (local.get $write) ;; oflags: create
        (if (result i64) (local.get $write) (then (i64.const 66)) (else (i64.const 2))) ;; rights: read, write
        (i64.const 0) (i32.const 0) (i32.const 32)))))
