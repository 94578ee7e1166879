// Cuts text as the `tokenizers` library does with a BERT's tokenizer.json: BertNormalizer,
// BertPreTokenizer, WordPiece, a template of special tokens. Any other kind is refused by its name.
// Knows no model; unicode.js holds what the library thinks of each character.

import * as unicode from "./unicode.js";

const REMOVED = 1, SPACE = 2, IDEOGRAPH = 4, MARK = 8, MOVES = 16, WHITE = 32, PUNCTUATION = 64;
const HELD_FOR = classes({ REMOVED, SPACE, IDEOGRAPH, MARK, MOVES, WHITE, PUNCTUATION });
const LOWER = lowerCase();

export class WordPiece {
  // spec: tokenizer.json, parsed. maxTokens: of a text, special tokens included.
  constructor(spec, { maxTokens = Infinity, truncationSide = "right" } = {}) {
    const { model, normalizer, pre_tokenizer: splitter } = spec;
    expect(model.type, "WordPiece", "model");
    expect(normalizer?.type, "BertNormalizer", "normalizer");
    expect(splitter?.type, "BertPreTokenizer", "pre_tokenizer");
    this.vocabulary = new Map(Object.entries(model.vocab));
    this.unknown = this.vocabulary.get(model.unk_token);
    this.prefix = model.continuing_subword_prefix;
    this.longestWord = model.max_input_chars_per_word;
    this.rules = normalizer;
    this.before = [];
    this.after = [];
    this.textType = 0;
    this.readTemplate(spec.post_processor);
    this.cut = Math.max(0, maxTokens - this.before.length - this.after.length);
    this.fromLeft = truncationSide === "left";
    this.added = { raw: [], normal: [] };
    for (const one of spec.added_tokens ?? []) {
      if (one.single_word) throw new Error(`added token ${one.content}: single_word is not known here`);
      const content = one.normalized ? this.normalize(one.content) : one.content;
      if (content) this.added[one.normalized ? "normal" : "raw"].push([content, one.id]);
    }
    // Of tokens that start at one place the longest counts.
    for (const list of Object.values(this.added)) list.sort((a, b) => b[0].length - a[0].length);
  }

  // {ids, typeIds}: numbers, special tokens included.
  encode(text) {
    let ids = this.pieces(text);
    if (ids.length > this.cut) {
      ids = this.fromLeft ? ids.slice(ids.length - this.cut) : ids.slice(0, this.cut);
    }
    const all = [...this.before, ...ids.map((id) => [id, this.textType]), ...this.after];
    return { ids: all.map(([id]) => id), typeIds: all.map(([, type]) => type) };
  }

  // The text's own ids, uncut.
  pieces(text) {
    const ids = [];
    const whole = text.replace(/[\ud800-\udfff]/gu, "\ufffd"); // halves of a pair
    for (const part of split(whole, this.added.raw)) {
      if (part.id !== undefined) ids.push(part.id);
      else {
        for (const own of split(this.normalize(part.text), this.added.normal)) {
          if (own.id !== undefined) ids.push(own.id);
          else for (const word of words(own.text)) this.addWord(word, ids);
        }
      }
    }
    return ids;
  }

  normalize(text) {
    const { clean_text: clean, handle_chinese_chars: apart, lowercase: lower } = this.rules;
    const bare = this.rules.strip_accents ?? lower;
    let found = text;
    if (clean) {
      found = each(found, (c, held) => (held & REMOVED ? "" : held & SPACE ? " " : c));
    }
    if (apart) found = each(found, (c, held) => (held & IDEOGRAPH ? ` ${c} ` : c));
    if (bare) found = each(decomposed(found), (c, held) => (held & MARK ? "" : c));
    // Character by character: a whole string's toLowerCase knows a final sigma, the library does not.
    if (lower) found = each(found, (c) => LOWER.get(c) ?? c);
    return found;
  }

  // The longest pieces from the left; a word of which some part is no piece is unknown as a whole.
  addWord(word, ids) {
    const characters = Array.from(word);
    const found = [];
    let start = characters.length > this.longestWord ? characters.length : 0;
    while (start < characters.length) {
      let end = characters.length;
      let id;
      while (end > start) {
        const piece = characters.slice(start, end).join("");
        id = this.vocabulary.get(start ? this.prefix + piece : piece);
        if (id !== undefined) break;
        end -= 1;
      }
      if (id === undefined) break;
      found.push(id);
      start = end;
    }
    if (start === characters.length && found.length) ids.push(...found);
    else if (this.unknown === undefined) throw new Error("the vocabulary lacks its unknown token");
    else ids.push(this.unknown);
  }

  readTemplate(processor) {
    if (!processor) return;
    if (processor.type === "BertProcessing") {
      this.before = [[processor.cls[1], 0]];
      this.after = [[processor.sep[1], 0]];
      return;
    }
    expect(processor.type, "TemplateProcessing", "post_processor");
    let into = this.before;
    for (const part of processor.single) {
      if (part.Sequence) {
        this.textType = part.Sequence.type_id;
        into = this.after;
      } else {
        const { id, type_id: type } = part.SpecialToken;
        for (const number of processor.special_tokens[id].ids) into.push([number, type]);
      }
    }
  }
}

// Parts of a text: {id} of an added token, {text} between them.
function* split(text, tokens) {
  let from = 0;
  for (let at = 0; tokens.length && at < text.length; ) {
    const found = tokens.find(([content]) => text.startsWith(content, at));
    if (!found) {
      at += 1;
      continue;
    }
    if (from < at) yield { text: text.slice(from, at) };
    yield { id: found[1] };
    at = from = at + found[0].length;
  }
  if (from < text.length) yield { text: text.slice(from) };
}

// Between white space; each punctuation character is a word of its own.
export function words(text) {
  const found = [];
  let word = "";
  for (const c of text) {
    const held = HELD_FOR[c.codePointAt(0)];
    if (held & (WHITE | PUNCTUATION)) {
      if (word) found.push(word);
      word = "";
      if (held & PUNCTUATION) found.push(c);
    } else word += c;
  }
  if (word) found.push(word);
  return found;
}

// Canonical decomposition (NFD) of the characters that the library's version of Unicode knows.
// What neither decomposes nor combines is a border that nothing moves across.
function decomposed(text) {
  let found = "";
  let run = "";
  for (const c of text) {
    if (HELD_FOR[c.codePointAt(0)] & MOVES) run += c;
    else {
      if (run) found += run.normalize("NFD");
      run = "";
      found += c;
    }
  }
  return run ? found + run.normalize("NFD") : found;
}

function each(text, change) {
  let found = "";
  for (const c of text) found += change(c, HELD_FOR[c.codePointAt(0)]);
  return found;
}

function classes(bits) {
  const table = new Uint8Array(0x110000);
  for (const [name, bit] of Object.entries(bits)) {
    const numbers = unicode[name].split(" ").map((word) => parseInt(word, 36));
    for (let i = 0, end = 0; i < numbers.length; i += 2) {
      const start = end + numbers[i];
      end = start + numbers[i + 1];
      for (let n = start; n < end; n += 1) table[n] |= bit;
    }
  }
  return table;
}

function lowerCase() {
  const table = new Map(Object.entries(unicode.LOWER_TO_SEVERAL));
  const numbers = unicode.LOWER.split(" ").map((word) => parseInt(word, 36));
  for (let i = 0, first = 0; i < numbers.length; i += 4) {
    first += numbers[i];
    const [length, step, distance] = numbers.slice(i + 1, i + 4);
    for (let n = first; n < first + length * step; n += step) {
      table.set(String.fromCodePoint(n), String.fromCodePoint(n + distance));
    }
  }
  return table;
}

function expect(found, wanted, what) {
  if (found !== wanted) {
    throw new Error(`tokenizer.json: ${what} is ${found ?? "missing"}; this page reads ${wanted}`);
  }
}
