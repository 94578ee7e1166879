// Answers lines of JSON: {open: {spec, options}} sets the tokenizer, {texts} gives ids, {normal} words.

import readline from "node:readline";

const { WordPiece, words } = await import(process.argv[2]);
let tokenizer;
for await (const line of readline.createInterface({ input: process.stdin, crlfDelay: Infinity })) {
  const asked = JSON.parse(line);
  let answer;
  try {
    if (asked.open) answer = Boolean((tokenizer = new WordPiece(asked.open.spec, asked.open.options)));
    else if (asked.normal) {
      answer = asked.normal.map((text) => words(tokenizer.normalize(text)));
    } else answer = asked.texts.map((text) => tokenizer.encode(text)).map((e) => [e.ids, e.typeIds]);
  } catch (error) {
    answer = { error: error.message };
  }
  console.log(JSON.stringify(answer));
}
