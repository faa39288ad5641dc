;; A plugin with both triggers whose core module the tests write: `tests/kit/wat.rs` puts text in the places marked ;;@.
;;
;; The core module has a memory and the host's functions as $now, $remaining, $random, $write, $write16, $writel1, $get,
;; $put, $delete, $record and $make, which makes a handle of a resource of its own. `body` answers both triggers: it leaves
;; a pointer to the response of the http trigger, such as $ok makes; the webhook trigger answers nothing. $case is the number
;; in the request's path, /00 to /99, or in the delivery's id, -00 to -99. `hook` runs whenever the host asks for memory, if
;; $hooked is 1; `post` when the host has read the answer. $top is where the next memory for the host is.
(component
  (type $header (tuple string (list u8)))
  (type $response (record (field "status" u16) (field "headers" (list $header)) (field "body" (list u8))))
  (type $failure (variant (case "retry" u64) (case "reject" string)))
  (type $request (record
    (field "method" string) (field "path" string) (field "query" (option string))
    (field "headers" (list $header)) (field "body" (list u8)) (field "route" string)
    (field "params" (list (tuple string string)))))
  (type $delivery (record
    (field "source" string) (field "id" string) (field "event-type" (option string))
    (field "headers" (list $header)) (field "body" (list u8))))

  (import "chalet:platform/types@0.1.0" (instance $types
    (type $info0 (record (field "limit" string) (field "remaining" u64) (field "retry-after-ms" u64)))
    (export "limit-info" (type $info (eq $info0)))
    (type $error0 (variant
      (case "denied" string) (case "not-found" string) (case "conflict" string) (case "invalid" string)
      (case "rate-limited" $info) (case "budget-exhausted" $info) (case "unavailable" string) (case "internal" string)))
    (export "error" (type (eq $error0)))))
  (alias export $types "error" (type $error))
  (import "chalet:platform/context@0.1.0" (instance $context
    (export "now-ms" (func (result u64)))
    (export "remaining-ms" (func (result u64)))
    (export "random-bytes" (func (param "length" u32) (result (list u8))))))
  (import "chalet:platform/log@0.1.0" (instance $log
    (type $level0 (enum "trace" "debug" "info" "warn" "error"))
    (export "level" (type $level (eq $level0)))
    (export "write" (func (param "level" $level) (param "message" string)))))
  (import "chalet:platform/kv@0.1.0" (instance $kv
    (alias outer 1 $error (type $e0))
    (export "error" (type $e (eq $e0)))
    (type $entry0 (record (field "key" string) (field "value" (list u8)) (field "version" u64)))
    (export "entry" (type $entry (eq $entry0)))
    (type $options0 (record (field "ttl-ms" (option u64)) (field "if-version" (option u64))))
    (export "put-options" (type $options (eq $options0)))
    (export "get" (func (param "collection" string) (param "key" string) (result (result (option $entry) (error $e)))))
    (export "put" (func (param "collection" string) (param "key" string) (param "value" (list u8))
      (param "options" $options) (result (result (error $e)))))
    (export "delete" (func (param "collection" string) (param "key" string) (param "if-version" (option u64))
      (result (result bool (error $e)))))))
  (import "chalet:platform/meters@0.1.0" (instance $meters
    (alias outer 1 $error (type $e0))
    (export "error" (type $e (eq $e0)))
    (export "record" (func (param "meter" string) (param "value" string) (param "dimensions" (list (tuple string string)))
      (result (result (error $e)))))))

  (core module $libc
    (memory (export "memory") 2)
    (table (export "hook") 1 funcref)
    (global $hooked (export "hooked") (mut i32) (i32.const 0))
    (global $top (export "top") (mut i32) (i32.const 8192))
    (type $void (func))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (local $at i32)
      (if (global.get $hooked) (then (call_indirect (type $void) (i32.const 0))))
      (local.set $at (i32.and (i32.add (global.get $top) (i32.const 15)) (i32.const -16)))
      (global.set $top (i32.add (local.get $at) (local.get 3)))
      (local.get $at)))
  (core instance $libc (instantiate $libc))
  (type $made (resource (rep i32)))
  (core func $make (canon resource.new $made))
  (core func $now (canon lower (func $context "now-ms")))
  (core func $remaining (canon lower (func $context "remaining-ms")))
  (core func $random (canon lower (func $context "random-bytes") (memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))))
  (core func $write (canon lower (func $log "write") (memory (core memory $libc "memory"))))
  (core func $write16 (canon lower (func $log "write") (memory (core memory $libc "memory")) string-encoding=utf16))
  (core func $writel1 (canon lower (func $log "write") (memory (core memory $libc "memory")) string-encoding=latin1+utf16))
  (core func $get (canon lower (func $kv "get") (memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))))
  (core func $put (canon lower (func $kv "put") (memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))))
  (core func $delete (canon lower (func $kv "delete") (memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))))
  (core func $record (canon lower (func $meters "record") (memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))))
  (core instance $host
    (export "now" (func $now)) (export "remaining" (func $remaining)) (export "random" (func $random))
    (export "write" (func $write)) (export "write16" (func $write16)) (export "writel1" (func $writel1)) (export "get" (func $get)) (export "put" (func $put)) (export "delete" (func $delete))
    (export "record" (func $record)) (export "make" (func $make)))

  ;;@component

  (core module $module
    (import "libc" "memory" (memory 2))
    (import "libc" "hook" (table $hooks 1 funcref))
    (import "libc" "hooked" (global $hooked (mut i32)))
    (import "libc" "top" (global $top (mut i32)))
    (import "host" "now" (func $now (result i64)))
    (import "host" "remaining" (func $remaining (result i64)))
    (import "host" "random" (func $random (param i32 i32)))
    (import "host" "write" (func $write (param i32 i32 i32)))
    (import "host" "write16" (func $write16 (param i32 i32 i32)))
    (import "host" "writel1" (func $writel1 (param i32 i32 i32)))
    (import "host" "get" (func $get (param i32 i32 i32 i32 i32)))
    (import "host" "put" (func $put (param i32 i32 i32 i32 i32 i32 i32 i64 i32 i64 i32)))
    (import "host" "delete" (func $delete (param i32 i32 i32 i32 i32 i64 i32)))
    (import "host" "record" (func $record (param i32 i32 i32 i32 i32 i32 i32)))
    (import "host" "make" (func $make (param i32) (result i32)))
    ;; A collection and a meter that it is granted, a key, a number, and two words.
    (data (i32.const 16) "mk7panic")
    (global $case (mut i32) (i32.const 0))
    (func $choose (param $text i32)
      (global.set $case (i32.add
        (i32.mul (i32.sub (i32.load8_u offset=1 (local.get $text)) (i32.const 48)) (i32.const 10))
        (i32.sub (i32.load8_u offset=2 (local.get $text)) (i32.const 48)))))
    ;;@fields
    (elem (table $hooks) (i32.const 0) func $hook)
    (func $hook ;;@hook
    )
    (func $start ;;@start
    )
    (start $start)
    ;; A response with this status and this body.
    (func $ok (param $status i32) (param $body i32) (param $length i32) (result i32)
      (i64.store (i32.const 1024) (i64.const 0))
      (i32.store (i32.const 1032) (local.get $status))
      (i64.store (i32.const 1036) (i64.const 0))
      (i32.store (i32.const 1044) (local.get $body))
      (i32.store (i32.const 1048) (local.get $length))
      (i32.const 1024))
    (func $body (export "body") (result i32) ;;@body
    )
    (func (export "handle") (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
      (call $choose (local.get 2))
      (call $body))
    (func (export "deliver") (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
      (call $choose (local.get 2))
      (drop (call $body))
      (i32.const 2048))
    (func (export "post") (param i32) ;;@post
    ))
  (core instance $core (instantiate $module (with "libc" (instance $libc)) (with "host" (instance $host))))

  (func $handle (param "request" $request) (result (result $response (error $failure)))
    (canon lift (core func $core "handle") (memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))
      (post-return (core func $core "post"))))
  (func $deliver (param "delivery" $delivery) (result (result (option $response) (error $failure)))
    (canon lift (core func $core "deliver") (memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))
      (post-return (core func $core "post"))))

  ;; An exported function may only speak of exported types; so a component of its own gives them their names.
  (component $http
    (type $header0 (tuple string (list u8)))
    (type $response0 (record (field "status" u16) (field "headers" (list $header0)) (field "body" (list u8))))
    (import "type-response" (type $response (eq $response0)))
    (type $failure0 (variant (case "retry" u64) (case "reject" string)))
    (import "type-failure" (type $failure (eq $failure0)))
    (type $request0 (record
      (field "method" string) (field "path" string) (field "query" (option string))
      (field "headers" (list $header0)) (field "body" (list u8)) (field "route" string)
      (field "params" (list (tuple string string)))))
    (import "type-request" (type $request (eq $request0)))
    (import "handle" (func $handle (param "request" $request) (result (result $response (error $failure)))))
    (export $response1 "response" (type $response))
    (export $failure1 "failure" (type $failure))
    (export $request1 "request" (type $request))
    (export "handle" (func $handle) (func (param "request" $request1) (result (result $response1 (error $failure1))))))
  (component $webhook
    (type $header0 (tuple string (list u8)))
    (type $response0 (record (field "status" u16) (field "headers" (list $header0)) (field "body" (list u8))))
    (import "type-response" (type $response (eq $response0)))
    (type $failure0 (variant (case "retry" u64) (case "reject" string)))
    (import "type-failure" (type $failure (eq $failure0)))
    (type $delivery0 (record
      (field "source" string) (field "id" string) (field "event-type" (option string))
      (field "headers" (list $header0)) (field "body" (list u8))))
    (import "type-delivery" (type $delivery (eq $delivery0)))
    (import "handle" (func $handle (param "delivery" $delivery) (result (result (option $response) (error $failure)))))
    (export $response1 "response" (type $response))
    (export $failure1 "failure" (type $failure))
    (export $delivery1 "delivery" (type $delivery))
    (export "handle" (func $handle)
      (func (param "delivery" $delivery1) (result (result (option $response1) (error $failure1))))))
  (instance $http-trigger (instantiate $http
    (with "type-response" (type $response)) (with "type-failure" (type $failure)) (with "type-request" (type $request))
    (with "handle" (func $handle))))
  (instance $webhook-trigger (instantiate $webhook
    (with "type-response" (type $response)) (with "type-failure" (type $failure)) (with "type-delivery" (type $delivery))
    (with "handle" (func $deliver))))
  (export "chalet:platform/http-trigger@0.1.0" (instance $http-trigger))
  (export "chalet:platform/webhook-trigger@0.1.0" (instance $webhook-trigger)))
