//! Answers `hello` over wasi:http, as `tests/guests/hello` does to Chalet.

use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

wasip2::http::proxy::export!(Hello);

struct Hello;

impl wasip2::exports::http::incoming_handler::Guest for Hello {
    fn handle(_: IncomingRequest, answer: ResponseOutparam) {
        let headers = Fields::from_list(&[("content-type".to_owned(), b"text/plain; charset=utf-8".to_vec())])
            .expect("a valid header");
        let response = OutgoingResponse::new(headers);
        let body = response.body().expect("a body is taken once");
        ResponseOutparam::set(answer, Ok(response));
        let out = body.write().expect("a body is written once");
        out.blocking_write_and_flush(b"hello").expect("the host takes five bytes");
        drop(out);
        OutgoingBody::finish(body, None).expect("a finished body");
    }
}
