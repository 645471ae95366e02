//! Small ONNX models, written byte by byte: no model file has to be trusted or kept.

/// A field of Protocol Buffers that has a length.
pub(crate) fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    out.extend(varint(bytes.len() as u64));
    out.extend(bytes);
    out
}

/// A field of Protocol Buffers that is a number.
pub(crate) fn number(field: u8, value: u64) -> Vec<u8> {
    let mut out = vec![field << 3];
    out.extend(varint(value));
    out
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// A `ValueInfoProto` of type f32.
pub(crate) fn value(name: &str, shape: &[u64]) -> Vec<u8> {
    let dimensions: Vec<u8> = shape.iter().flat_map(|size| field(1, &number(1, *size))).collect();
    let tensor = [number(1, 1), field(2, &dimensions)].concat();
    [field(1, name.as_bytes()), field(2, &field(1, &tensor))].concat()
}

/// A `TensorProto` with these bytes as its elements.
pub(crate) fn initializer(name: &str, kind: u64, shape: &[u64], raw: &[u8]) -> Vec<u8> {
    let dimensions: Vec<u8> = shape.iter().flat_map(|size| number(1, *size)).collect();
    [dimensions, number(2, kind), field(8, name.as_bytes()), field(9, raw)].concat()
}

/// A `NodeProto`.
pub(crate) fn node(operator: &str, inputs: &[&str], output: &str) -> Vec<u8> {
    let inputs: Vec<u8> = inputs.iter().flat_map(|input| field(1, input.as_bytes())).collect();
    [
        inputs,
        field(2, output.as_bytes()),
        field(3, output.as_bytes()),
        field(4, operator.as_bytes()),
    ]
    .concat()
}

/// A `ModelProto` of opset 13.
pub(crate) fn model(nodes: &[Vec<u8>], initializers: &[Vec<u8>], inputs: &[Vec<u8>], outputs: &[Vec<u8>]) -> Vec<u8> {
    let all =
        |number: u8, parts: &[Vec<u8>]| -> Vec<u8> { parts.iter().flat_map(|part| field(number, part)).collect() };
    let graph = [
        all(1, nodes),
        field(2, b"test"),
        all(5, initializers),
        all(11, inputs),
        all(12, outputs),
    ]
    .concat();
    let opset = [field(1, b""), number(2, 13)].concat();
    [number(1, 8), field(8, &opset), field(7, &graph)].concat()
}

/// `y = relu(x · w)` with x of 1 × 3 and w of 3 × 2. For (1, 2, 3) it is (7, 0).
pub(crate) fn small() -> Vec<u8> {
    let weights: Vec<u8> = [0.0_f32, -1.0, 2.0, -1.0, 1.0, -1.0]
        .iter()
        .flat_map(|w| w.to_le_bytes())
        .collect();
    model(
        &[node("MatMul", &["x", "w"], "xw"), node("Relu", &["xw"], "y")],
        &[initializer("w", 1, &[3, 2], &weights)],
        &[value("x", &[1, 3])],
        &[value("y", &[1, 2])],
    )
}
