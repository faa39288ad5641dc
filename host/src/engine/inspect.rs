//! The gate: one bounded pass over an uploaded component, before anything compiles it.
//!
//! Validation accepts components that no compiler survives: a kilobyte can ask for ten gigabytes. So
//! the shape of the code is bounded first, each rule by a number above what real guests have and below
//! what a bomb needs. What passes may still be expensive; the compile worker's limits are the real bound.
//!
//! It also says what a component is: its digest, its SDK, what it imports, which triggers it exports. It
//! does not validate; the worker does.

use std::fmt;

use semver::{Version, VersionReq};
use sha2::{Digest as _, Sha256};
use wasmparser::{
    ComponentAlias, ComponentExternalKind, ComponentInstance, ComponentOuterAliasKind, ComponentTypeRef, Encoding,
    FunctionBody, Instance, Operator, Parser, Payload, TypeRef,
};

use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::tenant::Plan;
use crate::kernel::text::escaped;
use crate::services::plugins::manifest::SDK_SECTION;

/// The SDK versions whose components this host runs.
pub const SDK_RANGE: &str = ">=0.1.0, <0.2.0";
/// The package of every interface that a plugin may import or export.
const PACKAGE: &str = "chalet:platform/";
/// The version of that package.
const PACKAGE_VERSION: &str = "@0.1.0";
/// The triggers, by their name in the contract and the name of their interface.
pub const TRIGGERS: [(&str, &str); 2] =
    [("http", "chalet:platform/http-trigger@0.1.0"), ("webhook", "chalet:platform/webhook-trigger@0.1.0")];
/// Characters of a stranger's name that an error repeats.
const SHOWN_CHARS: usize = 100;

/// The SHA-256 of a component's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Read 64 hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self> {
        let mut digest = [0; 32];
        hex::decode_to_slice(text, &mut digest).map_err(|_| Error::invalid("a digest is 64 hexadecimal digits"))?;
        Ok(Self(digest))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a component is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The digest of its bytes.
    pub digest: Digest,
    /// The version of the SDK that it was made with; none for guests made without it.
    pub sdk: Option<Version>,
    /// The interfaces that it imports, as in `chalet:platform/kv@0.1.0`.
    pub imports: Vec<String>,
    /// Everything that it exports.
    pub exports: Vec<String>,
    /// The triggers among them, by the names of the manifest: `http`, `webhook`.
    pub triggers: Vec<&'static str>,
}

/// The bounds of the gate. Beside each stands the largest value found in real guests (QuickJS, SQLite, CPython,
/// Rust, SpiderMonkey, Go, parsers) and in bombs. What `tests/real` installs must pass.
#[derive(Debug)]
struct Bounds {
    /// Bytes of the component: 14 MB.
    bytes: u64,
    /// Functions over all modules: 19,852; a bomb has as many, tiny.
    functions: u64,
    /// Bytes of one function's body: 426,843 in CPython; 1.17 million.
    function_bytes: u64,
    /// Nested blocks: 650 in Rust, 3,289 in Go; 20,000.
    depth: u64,
    /// Locals of one function: 483; 2,000.
    locals: u64,
    /// Locals times nesting of one function: 43,056; 8 million.
    locals_times_depth: u64,
    /// Targets of all `br_table`s of one function: 15,805 in CPython; 600,000.
    branch_targets: u64,
    /// Loads and stores of one function: 34,430 in a parser; 100,000.
    memory_accesses: u64,
    /// Instances that instantiating the component makes, with multiplicity: a few dozen; 3 * 10^18.
    instances: u64,
    /// Nested components: 4; 62.
    component_depth: u64,
    /// Memories of one module, imported ones among them: 1.
    memories: u64,
    /// Bytes of the memories' initial sizes: 22 MiB.
    memory_bytes: u64,
    /// Elements of the tables' initial sizes: 9,403.
    table_elements: u64,
    /// Data segments: 98,450 in Go; 90,000.
    data_segments: u64,
    /// Types of the component model: hundreds.
    types: u64,
    /// Lifted and lowered functions, for each of which an adapter may be compiled: hundreds.
    canonical_functions: u64,
    /// Imports, and as many exports, of the component itself: a dozen.
    names: u64,
}

/// For plans whose components have at most 8 MiB: Rust, C.
const USUAL: Bounds = Bounds {
    bytes: 8 << 20,
    functions: 20_000,
    function_bytes: 128 << 10,
    depth: 1_024,
    locals: 1_000,
    locals_times_depth: 100_000,
    branch_targets: 8_192,
    memory_accesses: 8_000,
    instances: 64,
    component_depth: 8,
    memories: 1,
    memory_bytes: 64 << 20,
    table_elements: 20_000,
    data_segments: 10_000,
    types: 10_000,
    canonical_functions: 2_000,
    names: 100,
};

/// For plans with larger ones: guests that carry an interpreter.
const LARGE: Bounds = Bounds {
    bytes: 32 << 20,
    functions: 40_000,
    function_bytes: 512 << 10,
    depth: 4_096,
    branch_targets: 32_768,
    memory_accesses: 40_000,
    memory_bytes: 256 << 20,
    data_segments: 100_000,
    ..USUAL
};

/// Which bounds a plan's components are held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// At most 8 MiB.
    Usual,
    /// At most 32 MiB.
    Large,
}

impl Class {
    /// The class of a plan, by the size of the components that it allows.
    pub fn of(plan: &Plan) -> Self {
        if plan.component_bytes > USUAL.bytes { Self::Large } else { Self::Usual }
    }

    fn bounds(self) -> &'static Bounds {
        match self {
            Self::Usual => &USUAL,
            Self::Large => &LARGE,
        }
    }
}

/// Look at an uploaded component. `bytes` come from a stranger. `interfaces` are those that a plugin may
/// import.
pub fn inspect(bytes: &[u8], class: Class, interfaces: &[&str]) -> Result<Inspection> {
    let bounds = class.bounds();
    is_component(bytes)?;
    hold("bytes", bytes.len() as u64, bounds.bytes)?;
    let mut pass = Pass::new(bounds);
    for payload in Parser::new(0).parse_all(bytes) {
        pass.see(payload.map_err(|error| damaged(&error))?)?;
    }
    pass.finish(bytes, interfaces)
}

fn is_component(bytes: &[u8]) -> Result<()> {
    if Parser::is_component(bytes) {
        return Ok(());
    }
    let text = || {
        let start = bytes.trim_ascii_start();
        start.starts_with(b"(module") || start.starts_with(b"(component") || start.starts_with(b";;")
    };
    Err(invalid(if bytes.is_empty() {
        "the upload is empty; send the component's bytes as the request's body"
    } else if Parser::is_core_wasm(bytes) {
        "this is a core module, not a component; run `chalet build`, or `wasm-tools component new`"
    } else if wasmtime::Engine::detect_precompiled(bytes).is_some() {
        "this is precompiled machine code, which is never accepted; upload the component itself"
    } else if text() {
        "this is WebAssembly text; upload the binary component that `chalet build` makes"
    } else {
        "this is no WebAssembly component; run `chalet build` and upload what it makes"
    }))
}

/// What the pass has seen so far.
struct Pass {
    bounds: &'static Bounds,
    /// The components and modules around the current place, outermost first.
    around: Vec<Level>,
    functions: u64,
    memory_bytes: u64,
    table_elements: u64,
    data_segments: u64,
    types: u64,
    canonical_functions: u64,
    /// Instances that the whole component makes.
    instances: u64,
    sdk: Option<String>,
    imports: Vec<String>,
    exports: Vec<String>,
}

enum Level {
    Module { memories: u64 },
    Component(Component),
}

/// A component being read: how many instances it makes, and how many each component that it can name makes.
#[derive(Default)]
struct Component {
    instances: u64,
    /// The component index space. What comes from an import or another instance is unknown and counts as
    /// too many, should it be instantiated; no toolchain makes such components.
    known: Vec<u64>,
}

const UNKNOWN: u64 = u64::MAX;

impl Pass {
    fn new(bounds: &'static Bounds) -> Self {
        Self {
            bounds,
            around: Vec::new(),
            functions: 0,
            memory_bytes: 0,
            table_elements: 0,
            data_segments: 0,
            types: 0,
            canonical_functions: 0,
            instances: 0,
            sdk: None,
            imports: Vec::new(),
            exports: Vec::new(),
        }
    }

    fn see(&mut self, payload: Payload<'_>) -> Result<()> {
        let bounds = self.bounds;
        match payload {
            Payload::Version { encoding: Encoding::Module, .. } => self.around.push(Level::Module { memories: 0 }),
            Payload::Version { encoding: Encoding::Component, .. } => {
                self.around.push(Level::Component(Component::default()));
                hold("component_depth", self.around.len() as u64, bounds.component_depth)?;
            }
            Payload::End(_) => self.leave(),
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    match import.map_err(|error| damaged(&error))?.ty {
                        TypeRef::Memory(memory) => self.memory(memory.initial)?,
                        TypeRef::Table(table) => self.table(table.initial)?,
                        _ => {}
                    }
                }
            }
            Payload::FunctionSection(section) => {
                self.functions += u64::from(section.count());
                hold("functions", self.functions, bounds.functions)?;
            }
            Payload::MemorySection(section) => {
                for memory in section {
                    self.memory(memory.map_err(|error| damaged(&error))?.initial)?;
                }
            }
            Payload::TableSection(section) => {
                for table in section {
                    self.table(table.map_err(|error| damaged(&error))?.ty.initial)?;
                }
            }
            Payload::DataSection(section) => {
                self.data_segments += u64::from(section.count());
                hold("data_segments", self.data_segments, bounds.data_segments)?;
            }
            Payload::CodeSectionEntry(body) => self.function(&body)?,
            Payload::CustomSection(section) if section.name() == SDK_SECTION => self.sdk_section(section.data())?,
            Payload::ComponentTypeSection(section) => self.add_types(section.count())?,
            Payload::CoreTypeSection(section) => self.add_types(section.count())?,
            Payload::ComponentCanonicalSection(section) => {
                self.canonical_functions += u64::from(section.count());
                hold("canonical_functions", self.canonical_functions, bounds.canonical_functions)?;
            }
            Payload::InstanceSection(section) => {
                for instance in section {
                    if let Instance::Instantiate { .. } = instance.map_err(|error| damaged(&error))? {
                        self.instantiate(1)?;
                    }
                }
            }
            Payload::ComponentInstanceSection(section) => {
                for instance in section {
                    if let ComponentInstance::Instantiate { component_index, .. } =
                        instance.map_err(|error| damaged(&error))?
                    {
                        let instances = self.named(0, component_index);
                        self.instantiate(instances)?;
                    }
                }
            }
            Payload::ComponentAliasSection(section) => {
                for alias in section {
                    match alias.map_err(|error| damaged(&error))? {
                        ComponentAlias::Outer { kind: ComponentOuterAliasKind::Component, count, index } => {
                            let instances = self.named(count, index);
                            self.name(instances);
                        }
                        ComponentAlias::InstanceExport { kind: ComponentExternalKind::Component, .. } => {
                            self.name(UNKNOWN)
                        }
                        _ => {}
                    }
                }
            }
            Payload::ComponentImportSection(section) => {
                for import in section {
                    let import = import.map_err(|error| damaged(&error))?;
                    if let ComponentTypeRef::Component(_) = import.ty {
                        self.name(UNKNOWN);
                    }
                    if self.around.len() == 1 {
                        hold("imports", self.imports.len() as u64 + 1, bounds.names)?;
                        self.imports.push(import.name.name.to_owned());
                    }
                }
            }
            Payload::ComponentExportSection(section) => {
                for export in section {
                    let export = export.map_err(|error| damaged(&error))?;
                    if export.kind == ComponentExternalKind::Component {
                        let instances = self.named(0, export.index);
                        self.name(instances);
                    }
                    if self.around.len() == 1 {
                        hold("exports", self.exports.len() as u64 + 1, bounds.names)?;
                        self.exports.push(export.name.name.to_owned());
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The current module or component ends, and the one around it has one more component to name.
    fn leave(&mut self) {
        if let Some(Level::Component(done)) = self.around.pop() {
            match self.around.last_mut() {
                Some(Level::Component(outer)) => outer.known.push(done.instances),
                _ => self.instances = done.instances,
            }
        }
    }

    fn instantiate(&mut self, instances: u64) -> Result<()> {
        let bound = self.bounds.instances;
        match self.around.last_mut() {
            Some(Level::Component(component)) => {
                component.instances = component.instances.saturating_add(instances);
                // A component that is never instantiated is held to the bound too; that is simpler, and no
                // real one is near it.
                hold("instances", component.instances, bound)
            }
            _ => Ok(()),
        }
    }

    /// Instances of a component by its index, `out` levels outwards.
    fn named(&self, out: u32, index: u32) -> u64 {
        let level = self.around.len().checked_sub(1 + out as usize).and_then(|at| self.around.get(at));
        match level {
            Some(Level::Component(component)) => component.known.get(index as usize).copied().unwrap_or(UNKNOWN),
            _ => UNKNOWN,
        }
    }

    fn name(&mut self, instances: u64) {
        if let Some(Level::Component(component)) = self.around.last_mut() {
            component.known.push(instances);
        }
    }

    fn memory(&mut self, pages: u64) -> Result<()> {
        if let Some(Level::Module { memories }) = self.around.last_mut() {
            *memories += 1;
            hold("memories", *memories, self.bounds.memories)?;
        }
        self.memory_bytes = self.memory_bytes.saturating_add(pages.saturating_mul(64 << 10));
        hold("memory_bytes", self.memory_bytes, self.bounds.memory_bytes)
    }

    fn table(&mut self, elements: u64) -> Result<()> {
        self.table_elements = self.table_elements.saturating_add(elements);
        hold("table_elements", self.table_elements, self.bounds.table_elements)
    }

    fn add_types(&mut self, count: u32) -> Result<()> {
        self.types += u64::from(count);
        hold("types", self.types, self.bounds.types)
    }

    fn function(&mut self, body: &FunctionBody<'_>) -> Result<()> {
        let bounds = self.bounds;
        let mut locals = 0_u64;
        for group in body.get_locals_reader().map_err(|error| damaged(&error))? {
            locals += u64::from(group.map_err(|error| damaged(&error))?.0);
            hold("locals", locals, bounds.locals)?;
        }
        let (mut depth, mut deepest, mut targets, mut accesses) = (0_u64, 0_u64, 0_u64, 0_u64);
        for operator in body.get_operators_reader().map_err(|error| damaged(&error))? {
            match operator.map_err(|error| damaged(&error))? {
                Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } => {
                    depth += 1;
                    deepest = deepest.max(depth);
                    hold("depth", depth, bounds.depth)?;
                    hold("locals_times_depth", locals * depth, bounds.locals_times_depth)?;
                }
                Operator::End => depth = depth.saturating_sub(1),
                Operator::BrTable { targets: table } => {
                    targets += u64::from(table.len());
                    hold("br_table", targets, bounds.branch_targets)?;
                }
                operator if accesses_memory(&operator) => {
                    accesses += 1;
                    hold("memory_accesses", accesses, bounds.memory_accesses)?;
                }
                _ => {}
            }
        }
        // Last, so that a bomb is refused for what makes it one.
        hold("function_bytes", body.as_bytes().len() as u64, bounds.function_bytes)
    }

    fn sdk_section(&mut self, data: &[u8]) -> Result<()> {
        let version = std::str::from_utf8(data).ok().filter(|version| version.len() <= 64);
        let version =
            version.ok_or_else(|| invalid("the section `chalet:sdk` holds no version; run `chalet build`"))?;
        if self.sdk.as_deref().is_some_and(|known| known != version) {
            return Err(invalid("the component was made with two versions of chalet-sdk; keep one in Cargo.lock"));
        }
        self.sdk = Some(version.to_owned());
        Ok(())
    }

    fn finish(mut self, bytes: &[u8], interfaces: &[&str]) -> Result<Inspection> {
        hold("instances", self.instances, self.bounds.instances)?;
        let sdk = self.sdk.take().map(|version| in_range(&version)).transpose()?;
        for import in &self.imports {
            if !interfaces.contains(&import.as_str()) {
                let reason = if import.starts_with(PACKAGE) && !import.ends_with(PACKAGE_VERSION) {
                    "this host has the interfaces of chalet:platform@0.1.0"
                } else {
                    "a plugin may import the interfaces of chalet:platform@0.1.0 only"
                };
                return Err(Error::new(
                    Kind::Invalid,
                    "capability_denied",
                    format!("the component imports {}; {reason}", shown(import)),
                ));
            }
        }
        let triggers: Vec<_> = TRIGGERS
            .iter()
            .filter(|(_, interface)| self.exports.iter().any(|export| export == interface))
            .map(|(name, _)| *name)
            .collect();
        if triggers.is_empty() {
            return Err(invalid(
                "the component exports no trigger of chalet:platform@0.1.0; with the Rust SDK, `chalet_sdk::export!` does",
            ));
        }
        Ok(Inspection { digest: Digest::of(bytes), sdk, imports: self.imports, exports: self.exports, triggers })
    }
}

/// `version` comes from the component.
fn in_range(version: &str) -> Result<Version> {
    let refuse = || {
        Error::new(
            Kind::Invalid,
            "sdk_out_of_range",
            format!(
                "the component was made with chalet-sdk {}; this host runs {SDK_RANGE}, so build it with one of these",
                shown(version)
            ),
        )
    };
    let version = Version::parse(version).map_err(|_| refuse())?;
    let range = VersionReq::parse(SDK_RANGE).map_err(Error::internal)?;
    // A pre-release is judged as the release that it precedes.
    let release = Version::new(version.major, version.minor, version.patch);
    if range.matches(&release) { Ok(version) } else { Err(refuse()) }
}

fn hold(rule: &'static str, found: u64, bound: u64) -> Result<()> {
    if found <= bound {
        return Ok(());
    }
    let found = if found == UNKNOWN { "too many".to_owned() } else { found.to_string() };
    Err(Error::new(
        Kind::Invalid,
        "component_too_complex",
        format!(
            "the component breaks the rule {rule}: {found}, and at most {bound} are allowed; make it simpler or ask for a larger plan"
        ),
    )
    .rule(rule))
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Kind::Invalid, "component_invalid", message)
}

fn damaged(error: &wasmparser::BinaryReaderError) -> Error {
    invalid(format!(
        "the component is damaged at byte {}: {}; build and upload it again",
        error.offset(),
        shown(error.message())
    ))
}

/// A stranger's text, escaped and cut.
fn shown(text: &str) -> String {
    let cut: String = text.chars().take(SHOWN_CHARS).collect();
    let dots = if cut.len() < text.len() { "..." } else { "" };
    format!("`{}{dots}`", escaped(&cut))
}

fn accesses_memory(operator: &Operator<'_>) -> bool {
    use Operator as O;
    matches!(
        operator,
        O::I32Load { .. }
            | O::I64Load { .. }
            | O::F32Load { .. }
            | O::F64Load { .. }
            | O::I32Load8S { .. }
            | O::I32Load8U { .. }
            | O::I32Load16S { .. }
            | O::I32Load16U { .. }
            | O::I64Load8S { .. }
            | O::I64Load8U { .. }
            | O::I64Load16S { .. }
            | O::I64Load16U { .. }
            | O::I64Load32S { .. }
            | O::I64Load32U { .. }
            | O::I32Store { .. }
            | O::I64Store { .. }
            | O::F32Store { .. }
            | O::F64Store { .. }
            | O::I32Store8 { .. }
            | O::I32Store16 { .. }
            | O::I64Store8 { .. }
            | O::I64Store16 { .. }
            | O::I64Store32 { .. }
            | O::V128Load { .. }
            | O::V128Load8x8S { .. }
            | O::V128Load8x8U { .. }
            | O::V128Load16x4S { .. }
            | O::V128Load16x4U { .. }
            | O::V128Load32x2S { .. }
            | O::V128Load32x2U { .. }
            | O::V128Load8Splat { .. }
            | O::V128Load16Splat { .. }
            | O::V128Load32Splat { .. }
            | O::V128Load64Splat { .. }
            | O::V128Load32Zero { .. }
            | O::V128Load64Zero { .. }
            | O::V128Store { .. }
            | O::V128Load8Lane { .. }
            | O::V128Load16Lane { .. }
            | O::V128Load32Lane { .. }
            | O::V128Load64Lane { .. }
            | O::V128Store8Lane { .. }
            | O::V128Store16Lane { .. }
            | O::V128Store32Lane { .. }
            | O::V128Store64Lane { .. }
    )
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    const LOG: &str = "chalet:platform/log@0.1.0";

    fn look(text: &str) -> Result<Inspection> {
        inspect(&wat::parse_str(text).unwrap(), Class::Usual, &[LOG])
    }

    fn rule(text: &str) -> Option<&'static str> {
        let error = look(text).unwrap_err();
        assert_eq!(error.code(), "component_too_complex", "{error:?}");
        error.broken_rule()
    }

    fn module(fields: &str) -> String {
        format!("(component (core module {fields}))")
    }

    #[test]
    fn instances_are_counted_with_their_multiplicity() {
        let mut text = "(component $c0 (core module $m) (core instance (instantiate $m)))".to_owned();
        for level in 1..=7 {
            text = format!(
                "(component $c{level} {text} (instance (instantiate $c{0})) (instance (instantiate $c{0})))",
                level - 1
            );
        }
        assert_eq!(rule(&text), Some("instances"));

        // The same, side by side instead of nested, through aliases of the outside.
        let mut text = String::from("(component (component $c0 (core module $m) (core instance (instantiate $m)))");
        for level in 1..=30 {
            let outer = format!(
                "(alias outer 1 $c{0} (component $x)) (instance (instantiate $x)) (instance (instantiate $x))",
                level - 1
            );
            let _ = write!(text, "(component $c{level} {outer})");
        }
        text.push(')');
        assert_eq!(rule(&text), Some("instances"));

        // What nobody can count is too many.
        let unknown = "(component (import \"a\" (component $c)) (instance (instantiate $c)))";
        assert_eq!(rule(unknown), Some("instances"));
        let copied = "(component (component $c0 (core module $m) (core instance (instantiate $m)))
            (component $c (export \"c\" (component $c0))) (instance $i (instantiate $c))
            (alias export $i \"c\" (component $again)) (instance (instantiate $again)))";
        assert_eq!(rule(copied), Some("instances"));
    }

    #[test]
    fn what_is_no_component_is_told_what_it_is() {
        let told = |bytes: &[u8], word: &str| {
            let error = inspect(bytes, Class::Usual, &[]).unwrap_err();
            assert_eq!(error.code(), "component_invalid");
            assert!(error.message().contains(word), "{}", error.message());
        };
        told(b"", "empty");
        told(&wat::parse_str("(module)").unwrap(), "core module");
        told(b"  (component)", "text");
        told(b"\x7fELF\x02\x01\x01", "no WebAssembly component");
        told(b"PK\x03\x04", "no WebAssembly component");
        let code = super::super::config::compiler(super::super::config::Start::Copied)
            .unwrap()
            .precompile_component(&wat::parse_str("(component)").unwrap())
            .unwrap();
        told(&code, "machine code");
        let whole = wat::parse_str("(component (core module (func (export \"a-name\"))))").unwrap();
        for length in 8..whole.len() {
            let error = inspect(&whole[..length], Class::Usual, &[]).unwrap_err();
            assert_eq!(error.code(), "component_invalid", "{length}");
        }
    }

    #[test]
    fn no_bytes_make_the_gate_panic() {
        let whole =
            wat::parse_str(module("(memory 1) (func (local i32) block i32.const 0 br_table 0 0 end) (data \"abc\")"))
                .unwrap();
        for at in 8..whole.len() {
            for bit in 0..8 {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                let _ = inspect(&bytes, Class::Usual, &[]);
            }
        }
    }

    #[test]
    fn an_unknown_import_is_named_and_a_plugin_has_to_handle_something() {
        let denied = look("(component (import \"wasi:sockets/tcp@0.2.0\" (instance)))").unwrap_err();
        assert_eq!(denied.code(), "capability_denied");
        assert!(denied.message().contains("wasi:sockets/tcp@0.2.0"));
        let later = look("(component (import \"chalet:platform/log@0.2.0\" (instance)))").unwrap_err();
        assert!(later.code() == "capability_denied" && later.message().contains("@0.1.0"));
        let nothing = look(&format!("(component (import \"{LOG}\" (instance)))")).unwrap_err();
        assert!(nothing.code() == "component_invalid" && nothing.message().contains("trigger"));
    }

    #[test]
    fn a_strangers_text_is_cut() {
        assert_eq!(shown(&"n".repeat(1_000)).len(), SHOWN_CHARS + "`...`".len());
    }

    #[test]
    fn an_sdk_out_of_range_is_refused_with_the_range() {
        let with = |version: &str| format!("(component (core module (@custom \"chalet:sdk\" \"{version}\")) {HOOK})");
        const HOOK: &str = "(component $c) (instance $i (instantiate $c)) (export \"chalet:platform/webhook-trigger@0.1.0\" (instance $i))";
        let found = look(&with("0.1.7")).unwrap();
        assert_eq!((found.sdk, found.triggers), (Some(Version::new(0, 1, 7)), vec!["webhook"]));
        assert!(look(&with("0.1.0-rc.1")).is_ok());
        for version in ["0.2.0", "0.0.9", "1.0.0", "", "x", "0.1"] {
            let error = look(&with(version)).unwrap_err();
            assert_eq!(error.code(), "sdk_out_of_range", "{version}");
            assert!(error.message().contains(SDK_RANGE));
        }
    }
}
