//! Plugins that carry a stranger: any core module or component becomes part of an upload that is otherwise in order, so
//! that whatever happens to the upload is the stranger's doing.

use std::sync::OnceLock;

use chalet::services::plugins::manifest::Manifest;
use wasm_encoder as encode;
use wasm_encoder::{ComponentSectionId, RawSection};
use wasmparser::{
    BinaryReader, CompositeInnerType, ExternalKind, Parser, Payload, TypeRef, ValType, Validator, WasmFeatures,
};

use crate::kit::guests::root;

/// Exports of a stranger that a driver can call: more would make each stranger's driver larger than the stranger.
const CALLED: usize = 12;

/// A manifest of a plugin with one route for all that the driver can be asked.
pub fn manifest(name: &str, version: &str) -> Manifest {
    let text = format!("name = \"{name}\"\nversion = \"{version}\"\n[http]\nroutes = [\"ANY /{{*rest}}\", \"GET /\"]");
    Manifest::from_toml(&text).expect("a manifest")
}

/// A carrier with its manifest, ready to be uploaded.
pub fn named(component: Vec<u8>, name: &str, version: &str) -> Vec<u8> {
    with(component, &manifest(name, version))
}

/// A component with this manifest. Not by `build::embed`, which looks at both: a damaged one must reach the server.
pub fn with(component: Vec<u8>, manifest: &Manifest) -> Vec<u8> {
    let manifest = manifest.to_json();
    let custom = encode::CustomSection { name: "chalet:manifest".into(), data: manifest.into() };
    let mut component = component;
    encode::ComponentSection::append_to_component(&custom, &mut component);
    component
}

/// Whether a component or module is valid, by what of WebAssembly this host has switched on. A module with several memories
/// is valid, and refused at the gate.
pub fn validate(wasm: &[u8]) -> wasmparser::Result<()> {
    let on =
        WasmFeatures::WASM2 | WasmFeatures::EXTENDED_CONST | WasmFeatures::MULTI_MEMORY | WasmFeatures::COMPONENT_MODEL;
    let features = on.difference(WasmFeatures::GC_TYPES);
    Validator::new_with_features(features).validate_all(wasm).map(drop)
}

/// Carries a module that is compiled and never instantiated: its imports may be anything.
pub fn beside(module: &[u8]) -> Vec<u8> {
    let mut component = whole();
    component.section(&RawSection { id: ComponentSectionId::CoreModule.into(), data: module });
    component.finish()
}

/// Carries a component; one that imports nothing can be instantiated too.
pub fn within(stranger: &[u8], instantiated: bool) -> Vec<u8> {
    let mut component = whole();
    component.section(&RawSection { id: ComponentSectionId::Component.into(), data: stranger });
    if instantiated {
        let mut instances = encode::ComponentInstanceSection::new();
        // The first component is the trigger's.
        instances.instantiate(1, std::iter::empty::<(String, encode::ComponentExportKind, u32)>());
        component.section(&instances);
    }
    component.finish()
}

/// A carrier whose stranger runs.
pub struct Running {
    /// The component, without a manifest.
    pub component: Vec<u8>,
    /// Functions of the stranger that can be called: a path of `n + 1` bytes calls the one with number `n`, a longer one
    /// calls none.
    pub functions: usize,
}

/// Carries a module that is instantiated beside the `world` that it may import, and whose functions the requests call.
pub fn running(module: &[u8]) -> Running {
    let functions = functions(module).unwrap_or_default();
    let driver = driver(&functions);
    let mut component = encode::Component::new();
    let mut modules = [None, Some(module), Some(driver.as_slice())].into_iter();
    for (id, data) in template() {
        let replaced = if *id == u8::from(ComponentSectionId::CoreModule) { modules.next().flatten() } else { None };
        component.section(&RawSection { id: *id, data: replaced.unwrap_or(data) });
    }
    Running { component: component.finish(), functions: functions.len() }
}

/// What a stranger may import, as a module with all the imports.
pub fn world() -> &'static [u8] {
    static WORLD: OnceLock<Vec<u8>> = OnceLock::new();
    WORLD.get_or_init(|| {
        wat::parse_str(
            r#"(module
                (import "world" "memory" (memory 1 4))
                (import "world" "table" (table 10 100 funcref))
                (import "world" "global" (global i32))
                (import "world" "counter" (global (mut i64)))
                (import "world" "give" (func (result i32)))
                (import "world" "take" (func (param i32 i64 f32 f64)))
                (import "world" "mix" (func (param i64 f64) (result f32))))"#,
        )
        .expect("it assembles")
    })
}

/// The sections of the carrier as its text has it.
fn template() -> &'static [(u8, Vec<u8>)] {
    static TEMPLATE: OnceLock<Vec<(u8, Vec<u8>)>> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let binary = wat::parse_file(root().join("tests/guests/wat/carrier.wat")).expect("the carrier assembles");
        let mut reader = BinaryReader::new(&binary[8..], 0);
        let mut sections = Vec::new();
        while !reader.eof() {
            let id = reader.read_u8().expect("a section");
            let length = reader.read_var_u32().expect("its length") as usize;
            sections.push((id, reader.read_bytes(length).expect("its bytes").to_vec()));
        }
        sections
    })
}

fn whole() -> encode::Component {
    let mut component = encode::Component::new();
    for (id, data) in template() {
        component.section(&RawSection { id: *id, data });
    }
    component
}

/// An exported function.
struct Function {
    name: String,
    params: Vec<ValType>,
    results: Vec<ValType>,
}

/// The exported functions that a driver can call; an error if the module is damaged, and nothing can be called.
fn functions(module: &[u8]) -> wasmparser::Result<Vec<Function>> {
    let (mut types, mut all, mut exported) = (Vec::new(), Vec::new(), Vec::new());
    for payload in Parser::new(0).parse_all(module) {
        match payload? {
            Payload::TypeSection(section) => {
                for group in section {
                    types.extend(group?.into_types().map(|one| match one.composite_type.inner {
                        CompositeInnerType::Func(function) => Some(function),
                        _ => None,
                    }));
                }
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    if let TypeRef::Func(index) = import?.ty {
                        all.push(index);
                    }
                }
            }
            Payload::FunctionSection(section) => {
                for index in section {
                    all.push(index?);
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    let export = export?;
                    if export.kind == ExternalKind::Func {
                        exported.push((export.name.to_owned(), export.index));
                    }
                }
            }
            _ => {}
        }
    }
    let callable = exported.into_iter().filter_map(|(name, index)| {
        let index = *all.get(index as usize)?;
        let function = types.get(index as usize)?.as_ref()?;
        let (params, results) = (function.params().to_vec(), function.results().to_vec());
        let plain = params.iter().chain(&results).all(|kind| !matches!(kind, ValType::Ref(_)));
        plain.then_some(Function { name, params, results })
    });
    Ok(callable.take(CALLED).collect())
}

fn value(kind: ValType) -> encode::ValType {
    match kind {
        ValType::I32 => encode::ValType::I32,
        ValType::I64 => encode::ValType::I64,
        ValType::F32 => encode::ValType::F32,
        ValType::F64 => encode::ValType::F64,
        ValType::V128 | ValType::Ref(_) => encode::ValType::V128,
    }
}

/// The driver: for a path of `n + 1` bytes it calls function `n` with the same arguments each time, and answers 200.
fn driver(functions: &[Function]) -> Vec<u8> {
    use encode::Instruction as I;
    /// The parameter with the length of the path.
    const PATH_LENGTH: u32 = 3;
    const ANSWER: i32 = 1024;
    let i32s = |count| std::iter::repeat_n(encode::ValType::I32, count);
    let count = u32::try_from(functions.len()).expect("few");

    let mut types = encode::TypeSection::new();
    types.ty().function(i32s(15), i32s(1));
    types.ty().function(i32s(4), i32s(1));
    let mut imports = encode::ImportSection::new();
    for (at, function) in (2..).zip(functions) {
        let kinds = |kinds: &[ValType]| kinds.iter().map(|kind| value(*kind)).collect::<Vec<_>>();
        types.ty().function(kinds(&function.params), kinds(&function.results));
        imports.import("stranger", &function.name, encode::EntityType::Function(at));
    }
    let mut declared = encode::FunctionSection::new();
    declared.function(0);
    declared.function(1);
    let mut memories = encode::MemorySection::new();
    memories.memory(encode::MemoryType {
        minimum: 1,
        maximum: None,
        memory64: false,
        shared: false,
        page_size_log2: None,
    });
    let mut globals = encode::GlobalSection::new();
    let mutable = encode::GlobalType { val_type: encode::ValType::I32, mutable: true, shared: false };
    globals.global(mutable, &encode::ConstExpr::i32_const(4096));
    let mut exports = encode::ExportSection::new();
    exports.export("memory", encode::ExportKind::Memory, 0);
    exports.export("handle", encode::ExportKind::Func, count);
    exports.export("realloc", encode::ExportKind::Func, count + 1);

    let mut handle = encode::Function::new([]);
    for (at, function) in (0_u32..).zip(functions) {
        handle.instruction(&I::LocalGet(PATH_LENGTH));
        handle.instruction(&I::I32Const(i32::try_from(at).expect("few") + 1));
        handle.instruction(&I::I32Eq);
        handle.instruction(&I::If(encode::BlockType::Empty));
        for (at, kind) in (at..).zip(&function.params) {
            // Small, negative, and an address: whatever makes a function take another way.
            let number = [0_i64, 1, -1, 65_536, 7][at as usize % 5];
            handle.instruction(&match value(*kind) {
                encode::ValType::I32 => I::I32Const(i32::try_from(number).expect("small")),
                encode::ValType::I64 => I::I64Const(number << 20),
                encode::ValType::F32 => I::F32Const((number as f32).into()),
                encode::ValType::F64 => I::F64Const((number as f64 / 3.0).into()),
                _ => I::V128Const(i128::from(number) << 60),
            });
        }
        handle.instruction(&I::Call(at));
        for _ in &function.results {
            handle.instruction(&I::Drop);
        }
        handle.instruction(&I::End);
    }
    handle.instruction(&I::I32Const(ANSWER));
    handle.instruction(&I::End);
    let mut realloc = encode::Function::new([(1, encode::ValType::I32)]);
    for instruction in [
        I::GlobalGet(0),
        I::I32Const(15),
        I::I32Add,
        I::I32Const(-16),
        I::I32And,
        I::LocalTee(4),
        I::LocalGet(3),
        I::I32Add,
        I::GlobalSet(0),
        I::LocalGet(4),
        I::End,
    ] {
        realloc.instruction(&instruction);
    }
    let mut code = encode::CodeSection::new();
    code.function(&handle);
    code.function(&realloc);
    let mut data = encode::DataSection::new();
    data.active(0, &encode::ConstExpr::i32_const(ANSWER + 8), [200]);

    let mut module = encode::Module::new();
    module.section(&types).section(&imports).section(&declared).section(&memories).section(&globals);
    module.section(&exports).section(&code).section(&data);
    module.finish()
}
