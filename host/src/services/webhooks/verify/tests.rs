use http::HeaderValue;

use super::*;

const NOW_MS: i64 = 1_700_000_000_500;
const NOW_S: i64 = NOW_MS / 1_000;
const BODY: &[u8] = br#"{"id":"evt_1","type":"invoice.paid"}"#;
const KEY: &[u8] = b"whsec_c2VjcmV0LXNlY3JldC1zZWNyZXQ=";

fn source(verify: Scheme) -> Source {
    Source { verify, secret: "S".into(), hmac: None }
}

fn generic(change: impl FnOnce(&mut Generic)) -> Source {
    let mut generic = Generic {
        header: "X-Sig".into(),
        algorithm: Algorithm::Sha256,
        encoding: Encoding::Hex,
        prefix: String::new(),
        id_header: None,
        event_header: None,
        timestamp_header: None,
    };
    change(&mut generic);
    generic.check().expect("valid");
    Source { verify: Scheme::Hmac, secret: "S".into(), hmac: Some(generic) }
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any key");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().to_vec()
}

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("name");
        headers.append(name, HeaderValue::from_str(value).expect("value"));
    }
    headers
}

fn code(outcome: Result<Verified>) -> &'static str {
    match outcome {
        Ok(_) => "ok",
        Err(error) => {
            if error.code().starts_with("signature_") {
                assert_eq!(error.kind(), Kind::Unauthenticated);
            }
            error.code()
        }
    }
}

fn stripe(time: i64, keys: &[&[u8]]) -> String {
    let time = time.to_string();
    let signatures = keys.iter().map(|key| format!(",v1={}", hex::encode(mac(key, &[time.as_bytes(), b".", BODY]))));
    format!("t={time}{},v0=00", signatures.collect::<String>())
}

#[test]
fn stripe_signs_time_and_body() {
    let check =
        |value: &str| verify(&source(Scheme::Stripe), &[KEY], &headers(&[("Stripe-Signature", value)]), BODY, NOW_MS);
    let verified = check(&stripe(NOW_S, &[KEY])).expect("right");
    assert_eq!(
        (verified.id.as_str(), verified.event_type.as_deref(), verified.id_signed, verified.challenge),
        ("evt_1", Some("invoice.paid"), true, None)
    );
    assert_eq!(code(check(&stripe(NOW_S, &[b"other", KEY]))), "ok");
    assert_eq!(code(check(&stripe(NOW_S, &[b"other"]))), "signature_invalid");
    let right = stripe(NOW_S, &[KEY]);
    for (value, expected) in [
        (right.replace("v1=", "v0="), "signature_invalid"),
        (right.replace("t=", "t=1,t="), "signature_invalid"),
        (right.replacen(",v0=00", "", 1).replace("v1=", "v1=0"), "signature_invalid"),
        (right.replace(&NOW_S.to_string(), &format!("+{NOW_S}")), "signature_invalid"),
        ("t=".into(), "signature_invalid"),
        ("v1=".into(), "signature_invalid"),
        ("garbage".into(), "signature_invalid"),
        (String::new(), "signature_missing"),
        (format!("t={NOW_S}{}", ",v1=00".repeat(100)), "signature_invalid"),
        (format!("{right}{}", " ".repeat(5_000)), "signature_invalid"),
    ] {
        assert_eq!(code(check(&value)), expected, "{value}");
    }
}

#[test]
fn a_time_is_fresh_for_300_seconds_on_both_sides() {
    for (offset, expected) in [
        (-301, "signature_stale"),
        (-300, "ok"),
        (0, "ok"),
        (300, "ok"),
        (301, "signature_stale"),
        (-1_700_000_000, "signature_stale"),
    ] {
        let headers = headers(&[("Stripe-Signature", &stripe(NOW_S + offset, &[KEY]))]);
        assert_eq!(code(verify(&source(Scheme::Stripe), &[KEY], &headers, BODY, NOW_MS)), expected, "{offset}");
    }
    // A stale time with a wrong signature says nothing about the time.
    let headers = headers(&[("Stripe-Signature", &stripe(NOW_S - 301, &[b"other"]))]);
    assert_eq!(code(verify(&source(Scheme::Stripe), &[KEY], &headers, BODY, NOW_MS)), "signature_invalid");
}

#[test]
fn github_signs_the_body_only() {
    let signature = format!("sha256={}", hex::encode(mac(KEY, &[BODY])));
    let all = [
        ("X-Hub-Signature-256", signature.as_str()),
        ("X-GitHub-Delivery", "72d3162e-cc78"),
        ("X-GitHub-Event", "issues"),
    ];
    let check = |pairs: &[(&str, &str)]| verify(&source(Scheme::Github), &[KEY], &headers(pairs), BODY, NOW_MS);
    let verified = check(&all).expect("right");
    assert_eq!(
        (verified.id.as_str(), verified.event_type.as_deref(), verified.id_signed),
        ("72d3162e-cc78", Some("issues"), false)
    );
    let unnamed = check(&all[..1]).expect("right");
    assert_eq!(unnamed.id, format!("sha256:{}", hex::encode(unnamed.digest)));
    assert_eq!(code(check(&[("X-Hub-Signature", &signature)])), "signature_missing");
    assert_eq!(code(check(&[("X-Hub-Signature-256", &signature[7..])])), "signature_invalid");
    assert_eq!(code(check(&[all[0], all[0]])), "signature_invalid");
    assert_eq!(code(check(&[all[0], all[1], all[1]])), "signature_invalid");
    assert_eq!(code(check(&[all[0], ("X-GitHub-Delivery", "a b")])), "delivery_id_invalid");
    assert_eq!(code(check(&[all[0], ("X-GitHub-Delivery", "")])), "delivery_id_invalid");
    assert_eq!(code(check(&[all[0], ("X-GitHub-Delivery", &"a".repeat(256))])), "delivery_id_invalid");
    let outcome = verify(&source(Scheme::Github), &[KEY], &headers(&all), b"{}", NOW_MS);
    assert_eq!(code(outcome), "signature_invalid");
}

/// GitHub's documented example: docs.github.com, "Validating webhook deliveries".
#[test]
fn github_documents_this_signature() {
    let signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    let headers = headers(&[("X-Hub-Signature-256", signature)]);
    let outcome = verify(&source(Scheme::Github), &[b"It's a Secret to Everybody"], &headers, b"Hello, World!", NOW_MS);
    assert_eq!(code(outcome), "ok");
}

#[test]
fn shopify_signs_the_body_in_base64() {
    let signature = STANDARD.encode(mac(KEY, &[BODY]));
    let all = [
        ("X-Shopify-Hmac-Sha256", signature.as_str()),
        ("X-Shopify-Webhook-Id", "b54557e4-bdd9"),
        ("X-Shopify-Topic", "orders/create"),
    ];
    let check = |pairs: &[(&str, &str)]| verify(&source(Scheme::Shopify), &[KEY], &headers(pairs), BODY, NOW_MS);
    let verified = check(&all).expect("right");
    assert_eq!((verified.id.as_str(), verified.event_type.as_deref()), ("b54557e4-bdd9", Some("orders/create")));
    assert_eq!(code(check(&[("X-Shopify-Hmac-Sha256", &hex::encode(mac(KEY, &[BODY])))])), "signature_invalid");
    assert_eq!(code(check(&all[1..])), "signature_missing");
}

fn slack(body: &[u8], time: &str) -> HeaderMap {
    let signature = format!("v0={}", hex::encode(mac(KEY, &[b"v0:", time.as_bytes(), b":", body])));
    headers(&[("X-Slack-Signature", &signature), ("X-Slack-Request-Timestamp", time)])
}

#[test]
fn slack_signs_version_time_and_body() {
    let now = NOW_S.to_string();
    let body = br#"{"type":"event_callback","event_id":"Ev08","event":{"type":"app_mention"}}"#;
    let check = |headers: &HeaderMap, body: &[u8]| verify(&source(Scheme::Slack), &[KEY], headers, body, NOW_MS);
    let verified = check(&slack(body, &now), body).expect("right");
    assert_eq!(
        (verified.id.as_str(), verified.event_type.as_deref(), verified.challenge),
        ("Ev08", Some("app_mention"), None)
    );
    let question = br#"{"type":"url_verification","challenge":"3eZbrw1aBm2r"}"#;
    assert_eq!(check(&slack(question, &now), question).expect("right").challenge.as_deref(), Some("3eZbrw1aBm2r"));
    let form = b"command=/weather&text=94070";
    assert!(check(&slack(form, &now), form).expect("right").id.starts_with("sha256:"));
    assert_eq!(code(check(&slack(body, &(NOW_S - 301).to_string()), body)), "signature_stale");
    assert_eq!(code(check(&slack(body, &now), question)), "signature_invalid");
    assert_eq!(code(check(&slack(body, "17e8"), body)), "signature_invalid");
    let mut unsigned = slack(question, &now);
    unsigned.remove("X-Slack-Signature");
    assert_eq!(code(check(&unsigned, question)), "signature_missing");
}

/// Slack's documented example: docs.slack.dev, "Verifying requests from Slack".
#[test]
fn slack_documents_this_signature() {
    let body = b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c";
    let headers = headers(&[
        ("X-Slack-Signature", "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503"),
        ("X-Slack-Request-Timestamp", "1531420618"),
    ]);
    let outcome =
        verify(&source(Scheme::Slack), &[b"8f742231b10e8888abcd99yyyzzz85a5"], &headers, body, 1_531_420_618_000);
    assert_eq!(code(outcome), "ok");
}

#[test]
fn standard_webhooks_vector_holds_under_both_header_names() {
    let secret = b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".as_slice();
    let body = br#"{"test": 2432232314}"#;
    let (id, time, signature) =
        ("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    let check = |prefix: &str, id: &str, signature: &str, key: &[u8]| {
        let names = ["id", "timestamp", "signature"].map(|part| format!("{prefix}-{part}"));
        let headers = headers(&[(&names[0], id), (&names[1], time), (&names[2], signature)]);
        verify(&source(Scheme::StandardWebhooks), &[key], &headers, body, 1_614_265_330_000)
    };
    for prefix in ["webhook", "svix"] {
        let verified = check(prefix, id, signature, secret).expect("right");
        assert_eq!((verified.id.as_str(), verified.id_signed), (id, true));
    }
    assert_eq!(code(check("webhook", id, signature, &secret[6..])), "ok");
    assert_eq!(code(check("webhook", id, &format!("v1,AAAA v1a,AAAA {signature}"), secret)), "ok");
    assert_eq!(code(check("webhook", id, &signature.replace("v1,", "v1a,"), secret)), "signature_invalid");
    assert_eq!(code(check("webhook", id, &signature[..20], secret)), "signature_invalid");
    assert_eq!(code(check("webhook", id, &"v1,AAAA ".repeat(100), secret)), "signature_invalid");
    assert_eq!(code(check("webhook", "msg.1", signature, secret)), "signature_invalid");
    assert_eq!(code(check("webhook", "", signature, secret)), "signature_missing");
    assert_eq!(code(check("webhook", id, signature, b"whsec_not base64")), "source_misconfigured");
}

#[test]
fn the_reference_signer_of_standard_webhooks_is_understood() {
    let secret = std::str::from_utf8(KEY).expect("ascii");
    let signer = standardwebhooks::Webhook::new(secret).expect("key");
    for offset in [-300, 0, 300] {
        let time = NOW_S + offset;
        let signature = signer.sign("msg_1", time, BODY).expect("signed");
        let time = time.to_string();
        let headers =
            headers(&[("webhook-id", "msg_1"), ("webhook-timestamp", &time), ("webhook-signature", &signature)]);
        let verified = verify(&source(Scheme::StandardWebhooks), &[KEY], &headers, BODY, NOW_MS).expect("right");
        assert_eq!((verified.id.as_str(), verified.event_type.as_deref()), ("msg_1", Some("invoice.paid")));
    }
}

#[test]
fn a_configured_hmac_is_what_its_source_says() {
    let plain = hex::encode(mac(KEY, &[BODY]));
    let check = |source: &Source, pairs: &[(&str, &str)]| verify(source, &[KEY], &headers(pairs), BODY, NOW_MS);
    assert_eq!(code(check(&generic(|_| {}), &[("x-sig", &plain)])), "ok");
    assert_eq!(code(check(&generic(|_| {}), &[("x-sig", &plain.to_uppercase())])), "ok");
    assert_eq!(code(check(&generic(|_| {}), &[])), "signature_missing");
    let prefixed = generic(|hmac| hmac.prefix = "sha256=".into());
    assert_eq!(code(check(&prefixed, &[("x-sig", &format!("sha256={plain}"))])), "ok");
    assert_eq!(code(check(&prefixed, &[("x-sig", &plain)])), "signature_invalid");
    let base64 = generic(|hmac| hmac.encoding = Encoding::Base64);
    assert_eq!(code(check(&base64, &[("x-sig", &STANDARD.encode(mac(KEY, &[BODY])))])), "ok");
    let sha512 = generic(|hmac| hmac.algorithm = Algorithm::Sha512);
    let mut long = Hmac::<Sha512>::new_from_slice(KEY).expect("key");
    long.update(BODY);
    assert_eq!(code(check(&sha512, &[("x-sig", &hex::encode(long.finalize().into_bytes()))])), "ok");
    assert_eq!(code(check(&sha512, &[("x-sig", &plain)])), "signature_invalid");

    let named = generic(|hmac| {
        hmac.id_header = Some("X-Id".into());
        hmac.event_header = Some("X-Event".into());
        hmac.timestamp_header = Some("X-Time".into());
    });
    let now = NOW_S.to_string();
    let timed = hex::encode(mac(KEY, &[now.as_bytes(), b".", BODY]));
    let verified =
        check(&named, &[("x-sig", &timed), ("x-time", &now), ("x-id", "d-1"), ("x-event", "paid")]).expect("right");
    assert_eq!((verified.id.as_str(), verified.event_type.as_deref()), ("d-1", Some("paid")));
    assert_eq!(code(check(&named, &[("x-sig", &plain), ("x-time", &now)])), "signature_invalid");
    assert_eq!(code(check(&named, &[("x-sig", &timed)])), "signature_missing");
}

#[test]
fn a_secret_may_hold_several_keys_while_one_replaces_the_other() {
    assert_eq!(keys(b"old\n\n new \r\n"), [b"old".as_slice(), b"new"]);
    assert!(keys(b" \n\n").is_empty());
    assert_eq!(keys(b"1\n2\n3\n4\n5").len(), KEYS);
    let headers = headers(&[("Stripe-Signature", &stripe(NOW_S, &[KEY]))]);
    let check = |keys: &[&[u8]]| code(verify(&source(Scheme::Stripe), keys, &headers, BODY, NOW_MS));
    assert_eq!(check(&[b"other", KEY]), "ok");
    assert_eq!(check(&[KEY, b"other"]), "ok");
    assert_eq!(check(&[b"other"]), "signature_invalid");
    assert_eq!(check(&[]), "source_misconfigured");
    assert_eq!(check(&[b""]), "source_misconfigured");
}

#[test]
fn a_body_that_names_itself_badly_is_known_by_its_digest() {
    for body in [r#"{"id":7}"#, r#"{"id":""}"#, r#"{"id":"a b"}"#, "not json", "[]", "", r#"{"id":"a","id":"b"}"#] {
        let time = NOW_S.to_string();
        let signature = format!("t={time},v1={}", hex::encode(mac(KEY, &[time.as_bytes(), b".", body.as_bytes()])));
        let headers = headers(&[("Stripe-Signature", &signature)]);
        let verified = verify(&source(Scheme::Stripe), &[KEY], &headers, body.as_bytes(), NOW_MS).expect("signed");
        assert_eq!(verified.id, format!("sha256:{}", hex::encode(Sha256::digest(body))), "{body}");
    }
}
