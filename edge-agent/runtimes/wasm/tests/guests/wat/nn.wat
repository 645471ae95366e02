;; A guest of wasi-nn. The tests put a model at 4096 (MODEL, LENGTH) and say what it does (BODY).
(module
  (import "wasi_ephemeral_nn" "load" (func $load (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "load_by_name" (func $by_name (param i32 i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "init_execution_context" (func $init (param i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "set_input" (func $set (param i32 i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "compute" (func $compute (param i32) (result i32)))
  (import "wasi_ephemeral_nn" "get_output" (func $get (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 4)
  (data (i32.const 4096) "MODEL")
  ;; The model's only part, the shape [1, 3], its elements 1 2 3, and the tensor of both.
  (data (i32.const 64) "\00\10\00\00LENGTH")
  (data (i32.const 128) "\01\00\00\00\03\00\00\00")
  (data (i32.const 160) "\00\00\80\3f\00\00\00\40\00\00\40\40")
  (data (i32.const 192) "\80\00\00\00\02\00\00\00\01\00\00\00\a0\00\00\00\0c\00\00\00")
  (data (i32.const 300) "y = ? ?\n")
  (data (i32.const 320) "small")
  (func $check (param i32) (if (local.get 0) (then (call $exit (local.get 0)))))
  (func $open (param $target i32)
    (call $check (call $load (i32.const 64) (i32.const 1) (i32.const 1) (local.get $target) (i32.const 16))))
  (func $context
    (call $check (call $init (i32.load (i32.const 16)) (i32.const 20))))
  (func $give
    (call $check (call $set (i32.load (i32.const 20)) (i32.const 0) (i32.const 192))))
  (func $run
    (call $check (call $compute (i32.load (i32.const 20)))))
  (func $digit (param $at i32) (param $to i32)
    (i32.store8 (local.get $to) (i32.add (i32.const 48) (i32.trunc_f32_u (f32.load (local.get $at))))))
  (func $print
    (call $check (call $get (i32.load (i32.const 20)) (i32.const 0) (i32.const 256) (i32.const 16) (i32.const 24)))
    (call $digit (i32.const 256) (i32.const 304))
    (call $digit (i32.const 260) (i32.const 306))
    (i32.store (i32.const 32) (i32.const 300))
    (i32.store (i32.const 36) (i32.const 8))
    (drop (call $write (i32.const 1) (i32.const 32) (i32.const 1) (i32.const 40))))
  (func (export "_start") BODY))
