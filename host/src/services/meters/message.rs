//! CloudEvents over HTTP: the events of a message in any of the three content modes (HTTP binding 1.0.2, section 3).
//!
//! The content type says the mode. `application/json` is no mode of the binding: with `ce-` headers it is the data of
//! an event in binary mode, without them it is read as the JSON format, for those who send events by hand.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName};
use percent_encoding::percent_decode;
use serde_json::{Map, Value};

use super::event::{self, Event, invalid};
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::json;

/// What stands before an attribute's name in the name of its header.
const PREFIX: &str = "ce-";

/// The events of a message that came at `now_ms`. `headers` and `body` come from a stranger.
pub fn receive(headers: &HeaderMap, body: &[u8], now_ms: i64) -> Result<Vec<Event>> {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media = event::media_type(content_type);
    match media.as_str() {
        "application/cloudevents+json" | "application/cloudevents-batch+json" => event::parse(body, now_ms),
        other if other.starts_with("application/cloudevents") => Err(unsupported()),
        _ if headers.keys().any(|name| name.as_str().starts_with(PREFIX)) => {
            let mut members = attributes(headers)?;
            if !content_type.is_empty() {
                members.insert("datacontenttype".into(), content_type.into());
            }
            if !body.is_empty() {
                if !event::is_json(&media) {
                    return Err(unsupported());
                }
                members.insert("data".into(), json::value(body)?);
            }
            Ok(vec![event::single(members.into(), now_ms)?])
        }
        "application/json" => event::parse(body, now_ms),
        _ => Err(unsupported()),
    }
}

/// The attributes that stand in headers.
fn attributes(headers: &HeaderMap) -> Result<Map<String, Value>> {
    let mut attributes = Map::new();
    for name in headers.keys() {
        let Some(attribute) = name.as_str().strip_prefix(PREFIX) else { continue };
        if matches!(attribute, "data" | "data_base64" | "datacontenttype") {
            return Err(invalid(format!("there is no header {name}: the body is the data, and Content-Type its type")));
        }
        attributes.insert(attribute.to_owned(), value(headers, name)?.into());
    }
    Ok(attributes)
}

fn value(headers: &HeaderMap, name: &HeaderName) -> Result<String> {
    let mut values = headers.get_all(name).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(invalid(format!("the header {name} comes twice; an attribute has one value")));
    };
    decoded(value.as_bytes())
        .ok_or_else(|| invalid(format!("the header {name} is no text: percent-encode it, as UTF-8")))
}

/// A header's value as the attribute had it (3.1.3.2): taken out of quotes, then percent-decoded once.
fn decoded(value: &[u8]) -> Option<String> {
    let plain = match value.strip_prefix(b"\"") {
        Some(quoted) => unquoted(quoted)?,
        None => value.to_vec(),
    };
    String::from_utf8(percent_decode(&plain).collect()).ok()
}

/// What stands up to the closing quote, which must be the end (RFC 7230, 3.2.6).
fn unquoted(value: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(value.len());
    let mut bytes = value.iter();
    loop {
        match bytes.next()? {
            b'"' => return bytes.as_slice().is_empty().then_some(plain),
            b'\\' => plain.push(*bytes.next()?),
            byte => plain.push(*byte),
        }
    }
}

fn unsupported() -> Error {
    Error::new(
        Kind::Invalid,
        "unsupported_media_type",
        "send application/cloudevents+json, application/cloudevents-batch+json for an array, or JSON data with the event's \
         attributes in ce- headers",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use serde_json::json;

    const NOW_MS: i64 = 1_800_000_000_000;

    fn message(headers: &[(&str, &str)], body: &str) -> Result<Vec<Event>> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            map.append(name, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
        }
        receive(&map, body.as_bytes(), NOW_MS)
    }

    /// A message in binary mode with these headers beside the demanded ones.
    fn binary(more: &[(&str, &str)], body: &str) -> Result<Vec<Event>> {
        let demanded = [("CE-SpecVersion", "1.0"), ("ce-id", "1"), ("ce-source", "/app"), ("ce-type", "completion")];
        message(&[&demanded, more].concat(), body)
    }

    fn code(outcome: Result<Vec<Event>>) -> &'static str {
        outcome.map_or_else(|error| error.code(), |_| "ok")
    }

    const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");

    #[test]
    fn an_event_is_the_same_in_every_mode() {
        let structured = json!({ "specversion": "1.0", "id": "1", "source": "/app", "type": "completion", "subject": "u1",
            "time": "2027-01-15T07:59:00Z", "myextension": "x", "datacontenttype": "application/json", "data": { "n": 3 } });
        let one =
            message(&[("content-type", "application/cloudevents+json")], &structured.to_string()).expect("an event");
        assert_eq!((one.len(), &one[0].data), (1, &Some(json!({ "n": 3 }))));
        let batch = message(
            &[("content-type", "application/cloudevents-batch+json; charset=UTF-8")],
            &json!([structured]).to_string(),
        );
        assert_eq!(batch.expect("a batch"), one);
        let by_hand = message(&[("content-type", "application/json")], &structured.to_string());
        assert_eq!(by_hand.expect("an event"), one);
        let headers = [JSON, ("ce-subject", "u1"), ("ce-time", "2027-01-15T07:59:00Z"), ("ce-myextension", "x")];
        assert_eq!(binary(&headers, r#"{"n":3}"#).expect("an event"), one);
        // In structured mode the headers may be there too, and only the body counts.
        let both = [("content-type", "application/cloudevents+json"), ("ce-id", "2")];
        assert_eq!(message(&both, &structured.to_string()).expect("an event"), one);
    }

    #[test]
    fn an_event_in_binary_mode_needs_no_data() {
        let event = binary(&[], "").expect("an event").remove(0);
        assert_eq!((event.id.as_str(), event.data), ("1", None));
    }

    #[test]
    fn values_are_taken_out_of_quotes_and_percent_decoded_once() {
        let subject =
            |value: &str| binary(&[JSON, ("ce-subject", value)], "{}").map(|mut events| events.remove(0).subject);
        for (value, meant) in [
            // The binding's own example.
            ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro \u{20ac} \u{1f600}"),
            ("%e2%82%ac", "\u{20ac}"),
            ("%41bc", "Abc"),
            ("%2541", "%41"),
            ("100%", "100%"),
            (r#""a \"b\" \\ c""#, r#"a "b" \ c"#),
            (r#""a%20b""#, "a b"),
            (r#"a"b"#, r#"a"b"#),
        ] {
            assert_eq!(subject(value).expect(value).as_deref(), Some(meant), "{value}");
        }
        // Overlong, cut off, a lone surrogate, Latin-1; quotes that do not close, or close too early.
        for value in ["%C0%A0", "%E2%82", "%ED%A0%80", "%FC", "\"a", "\"a\"b", "\"a\\", ""] {
            assert_eq!(subject(value).expect_err(value).code(), "event_invalid", "{value}");
        }
    }

    #[test]
    fn a_message_that_can_be_read_in_two_ways_is_refused() {
        for more in [("ce-id", "2"), ("ce-datacontenttype", "application/json"), ("ce-data", "{}"), ("ce-my_name", "x")]
        {
            assert_eq!(code(binary(&[JSON, more], "{}")), "event_invalid", "{more:?}");
        }
        assert_eq!(
            code(message(&[JSON, ("ce-id", "1")], "{}")),
            "event_invalid",
            "attributes that must be there are not"
        );
        assert_eq!(code(binary(&[JSON], "{")), "bad_json");
    }

    #[test]
    fn only_json_can_be_counted() {
        assert_eq!(code(binary(&[("content-type", "application/vnd.acme+json")], "{}")), "ok");
        for kind in ["text/plain", "application/cloudevents+avro", "application/cloudevents-batch+xml", ""] {
            assert_eq!(code(binary(&[("content-type", kind)], "{}")), "unsupported_media_type", "{kind}");
        }
        assert_eq!(code(binary(&[], "{}")), "unsupported_media_type");
        assert_eq!(code(message(&[("content-type", "text/plain")], "{}")), "unsupported_media_type");
    }

    #[test]
    fn an_event_in_binary_mode_has_the_same_bound() {
        let large = format!("\"{}\"", "x".repeat(event::EVENT_BYTES));
        assert_eq!(code(binary(&[JSON], &large)), "event_too_large");
    }
}
