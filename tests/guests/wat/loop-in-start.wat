;; An http plugin whose core module loops in its start function: it never gets as far as a call.
;;
;; It needs no import. The manifest is added by the test that deploys it.
(component
  (core module $module
    (memory (export "memory") 1)
    (func $start (loop $again (br $again)))
    (start $start)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
    ;; Texts, lists and the optional query of a request in their flat form, and where the answer is.
    (func (export "handle")
      (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
      unreachable))
  (core instance $core (instantiate $module))

  (type $header (tuple string (list u8)))
  (type $response (record (field "status" u16) (field "headers" (list $header)) (field "body" (list u8))))
  (type $failure (variant (case "retry" u64) (case "reject" string)))
  (type $request (record
    (field "method" string) (field "path" string) (field "query" (option string))
    (field "headers" (list $header)) (field "body" (list u8)) (field "route" string)
    (field "params" (list (tuple string string)))))
  (func $handle (param "request" $request) (result (result $response (error $failure)))
    (canon lift (core func $core "handle") (memory (core memory $core "memory")) (realloc (core func $core "realloc"))))

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
