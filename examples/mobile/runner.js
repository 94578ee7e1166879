// A student in one ONNX file: tokenizer and labels are in its metadata. Knows bytes and texts, no page.
//
//   import { openStudent } from "./runner.js";
//   const student = await openStudent(new Uint8Array(await (await fetch("model.onnx")).arrayBuffer()));
//   (await student.classify("a gripping and moving film")).label
//
// ./vendor holds three files of the npm package onnxruntime-web (`make web`).

import * as ort from "./vendor/ort.wasm.min.mjs";
import { readMetadata } from "./onnx_metadata.js";
import { WordPiece } from "./wordpiece.js";

ort.env.wasm.wasmPaths = new URL("./vendor/", import.meta.url).href;
// More threads need a page that is isolated from others (COOP and COEP headers).
ort.env.wasm.numThreads = 1;

export async function openStudent(bytes) {
  const metadata = readMetadata(bytes);
  for (const name of ["student.json", "tokenizer.json"]) {
    if (!metadata.has(name)) {
      throw new Error(`has no ${name} inside: make it with compress.formats: [onnx-mobile]`);
    }
  }
  const spec = JSON.parse(metadata.get("student.json"));
  const tokenizer = new WordPiece(JSON.parse(metadata.get("tokenizer.json")), {
    maxTokens: spec.max_tokens,
    truncationSide: spec.truncation_side,
  });
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  return new Student(session, tokenizer, spec);
}

export class Student {
  constructor(session, tokenizer, spec) {
    this.session = session;
    this.tokenizer = tokenizer;
    this.spec = spec;
    this.turn = Promise.resolve();
  }

  // {label, probabilities: {label: number}, tokens}. One text a run: a batch would move INT8 ranges.
  classify(text) {
    // onnxruntime-web runs one input at a time.
    const answer = this.turn.then(() => this.run(text));
    this.turn = answer.catch(() => undefined);
    return answer;
  }

  async run(text) {
    const { ids, typeIds } = this.tokenizer.encode(text);
    const length = Math.max(1, ids.length);
    const values = {
      input_ids: ids.length ? ids : [this.spec.pad_id],
      attention_mask: ids.length ? ids.map(() => 1) : [0],
      token_type_ids: ids.length ? typeIds : [0],
    };
    const feeds = {};
    for (const name of this.spec.inputs) {
      feeds[name] = new ort.Tensor("int64", BigInt64Array.from(values[name], BigInt), [1, length]);
    }
    const { logits } = await this.session.run(feeds);
    const p = softmax(Array.from(logits.data));
    const best = p.indexOf(Math.max(...p));
    return {
      label: this.spec.labels[best],
      probabilities: Object.fromEntries(this.spec.labels.map((label, i) => [label, p[i]])),
      tokens: ids.length,
    };
  }

  release() {
    return this.session.release();
  }
}

function softmax(logits) {
  const most = Math.max(...logits);
  const e = logits.map((x) => Math.exp(x - most));
  const sum = e.reduce((a, b) => a + b);
  return e.map((x) => x / sum);
}
