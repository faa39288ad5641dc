;; An http plugin that carries a stranger: a core module that is instantiated beside what it may import, and a driver that
;; answers requests and can call what the stranger exports. `tests/kit/carrier.rs` puts both in.
;;
;; As it stands here the stranger is empty, and the driver answers 200 without a body. It needs no import.
(component
  (core module $world
    (memory (export "memory") 1 4)
    (table (export "table") 10 100 funcref)
    (global (export "global") i32 (i32.const 42))
    (global (export "counter") (mut i64) (i64.const 0))
    (func (export "give") (result i32) (i32.const 7))
    (func (export "take") (param i32 i64 f32 f64))
    (func (export "mix") (param i64 f64) (result f32) (f32.const 0.5)))
  (core instance $world (instantiate $world))
  (core module $stranger)
  (core instance $stranger (instantiate $stranger (with "world" (instance $world))))
  (core module $driver
    (memory (export "memory") 1)
    (global $top (mut i32) (i32.const 4096))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (local $at i32)
      (local.set $at (i32.and (i32.add (global.get $top) (i32.const 15)) (i32.const -16)))
      (global.set $top (i32.add (local.get $at) (local.get 3)))
      (local.get $at))
    ;; Texts, lists and the optional query of a request in their flat form, and where the answer is: ok, 200, no header
    ;; and no body.
    (func (export "handle")
      (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
      (i32.const 1024))
    (data (i32.const 1032) "\c8"))
  (core instance $driver (instantiate $driver (with "stranger" (instance $stranger))))

  (type $header (tuple string (list u8)))
  (type $response (record (field "status" u16) (field "headers" (list $header)) (field "body" (list u8))))
  (type $failure (variant (case "retry" u64) (case "reject" string)))
  (type $request (record
    (field "method" string) (field "path" string) (field "query" (option string))
    (field "headers" (list $header)) (field "body" (list u8)) (field "route" string)
    (field "params" (list (tuple string string)))))
  (func $handle (param "request" $request) (result (result $response (error $failure)))
    (canon lift (core func $driver "handle") (memory (core memory $driver "memory"))
      (realloc (core func $driver "realloc"))))

  ;; An exported function may only speak of exported types; so a component of its own gives them their names.
  (component $trigger
    (type $header0 (tuple string (list u8)))
    (import "type-header" (type $header (eq $header0)))
    (type $response0 (record (field "status" u16) (field "headers" (list $header)) (field "body" (list u8))))
    (import "type-response" (type $response (eq $response0)))
    (type $failure0 (variant (case "retry" u64) (case "reject" string)))
    (import "type-failure" (type $failure (eq $failure0)))
    (type $request0 (record
      (field "method" string) (field "path" string) (field "query" (option string))
      (field "headers" (list $header)) (field "body" (list u8)) (field "route" string)
      (field "params" (list (tuple string string)))))
    (import "type-request" (type $request (eq $request0)))
    (import "func-handle" (func $handle (param "request" $request) (result (result $response (error $failure)))))
    (export $header1 "header" (type $header))
    (export $response1 "response" (type $response))
    (export $failure1 "failure" (type $failure))
    (export $request1 "request" (type $request))
    (export "handle" (func $handle)
      (func (param "request" $request1) (result (result $response1 (error $failure1))))))
  (instance $instance (instantiate $trigger
    (with "type-header" (type $header))
    (with "type-response" (type $response))
    (with "type-failure" (type $failure))
    (with "type-request" (type $request))
    (with "func-handle" (func $handle))))
  (export "chalet:platform/http-trigger@0.1.0" (instance $instance)))
