// Reads metadata_props of an ONNX file, which onnxruntime-web does not give: ModelProto field 14,
// each a StringStringEntryProto {1: key, 2: value}. Skips over the graph; knows nothing else of it.

const METADATA = 14;
const LENGTH_DELIMITED = 2;

// bytes: Uint8Array of a whole file. A Map of strings.
export function readMetadata(bytes) {
  const found = new Map();
  for (const [field, body] of fields(bytes)) {
    if (field !== METADATA) continue;
    const entry = new Map();
    for (const [part, text] of fields(body)) entry.set(part, new TextDecoder().decode(text));
    found.set(entry.get(1) ?? "", entry.get(2) ?? "");
  }
  return found;
}

// The length-delimited fields of a protobuf message: [number, bytes].
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      if (at >= bytes.length) throw new Error("is no ONNX file: it ends in the middle of a number");
      const byte = bytes[at++];
      value += (byte & 127) * factor;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const key = varint();
    const field = Math.floor(key / 8);
    const kind = key % 8;
    if (kind === 0) varint();
    else if (kind === 1) at += 8;
    else if (kind === 5) at += 4;
    else if (kind === LENGTH_DELIMITED) {
      const length = varint();
      if (at + length > bytes.length) throw new Error("is no ONNX file, or not all of one");
      yield [field, bytes.subarray(at, at + length)];
      at += length;
    } else throw new Error(`is no ONNX file: field ${field} is of kind ${kind}`);
  }
}
