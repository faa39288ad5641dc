//! Evaluates flags as a test gives them, and a suite of its own.
//!
//! `POST /evaluate {"flag","context":{…}}` answers `{"value","variant","reason"}` or `{"error":{…}}`.

use chalet_sdk::flags::{self, Context};
use chalet_sdk::http::{Request, Response};
use chalet_sdk::{Error, Plugin, Result};
use guest_report::outcome;
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
struct Evaluate {
    flag: String,
    #[serde(default)]
    context: Map<String, Value>,
}

/// The guest.
pub struct Flags;

impl Plugin for Flags {
    fn http(request: Request) -> Result<Response> {
        if request.route() == "POST /suite" {
            return suite().map(|()| Response::text("passed"));
        }
        let Evaluate { flag, context } = request.json()?;
        let context = context.into_iter().fold(Context::new(), |context, (name, value)| context.with(name, value));
        let evaluated = flags::evaluate(&flag, &context).map(|evaluation| {
            json!({ "value": evaluation.value, "variant": evaluation.variant, "reason": evaluation.reason })
        });
        Response::json(&outcome(evaluated))
    }
}

/// What every host must keep of `flags.wit`. The tenant's flags are those of `flags.json` beside the manifest.
pub fn suite() -> Result<()> {
    let nobody = Context::new();
    let on = flags::evaluate("on", &nobody)?;
    assert_eq!((on.value, on.variant.as_deref(), on.reason.as_str()), (Some(json!(true)), Some("yes"), "STATIC"));
    assert!(flags::boolean("on", false, &nobody));

    let pro = Context::new().targeting_key("u1").with("plan", "pro").with("email", "ada@example.com");
    let colour = flags::evaluate("colour", &pro)?;
    assert_eq!((colour.value, colour.reason.as_str()), (Some(json!("#0f0")), "TARGETING_MATCH"));
    let plain = flags::evaluate("colour", &nobody)?;
    assert_eq!((plain.value, plain.reason.as_str()), (Some(json!("#f00")), "DEFAULT"));
    assert_eq!(flags::string("colour", "none", &pro), "#0f0");

    assert_eq!(flags::number("size", 0.0, &pro), 2.5);
    assert_eq!(flags::integer("size", 0, &nobody), 1);
    assert_eq!(flags::integer("size", 7, &pro), 7, "2.5 is no whole number");
    assert_eq!(
        Value::Object(flags::object("layout", Map::new(), &nobody)),
        json!({ "columns": 3, "tags": ["a", "b"] })
    );

    let off = flags::evaluate("off", &nobody)?;
    assert_eq!((off.value, off.reason.as_str()), (None, "DISABLED"));
    assert!(!flags::boolean("off", false, &nobody) && flags::boolean("off", true, &nobody));

    // A subject stays on its side, and both sides have subjects.
    let side = |subject: u32| flags::string("half", "none", &Context::new().targeting_key(format!("user-{subject}")));
    let right = (0..100).filter(|subject| side(*subject) == "right").count();
    assert!((20..=80).contains(&right), "{right} of 100 are on the right");
    assert!((0..100).all(|subject| side(subject) == side(subject)));

    assert!(matches!(flags::evaluate("undefined", &nobody), Err(Error::NotFound(_))));
    assert!(matches!(flags::evaluate("elsewhere", &nobody), Err(Error::Denied(_))));
    assert!(flags::boolean("undefined", true, &nobody));
    assert_eq!(flags::string("on", "other type", &nobody), "other type");
    Ok(())
}

chalet_sdk::export!(Flags: http);
