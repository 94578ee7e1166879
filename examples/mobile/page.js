// The page: opens a student (the file input, or ?model=URL of this server) and shows what it says.

import { openStudent } from "./runner.js";

const at = (id) => document.getElementById(id);
let student;

async function open(name, read) {
  at("ask").disabled = true;
  say(`Opening ${name}`);
  try {
    const bytes = new Uint8Array(await read());
    const opened = await openStudent(bytes);
    await student?.release();
    student = opened;
    at("ask").disabled = false;
    say(`${name}: ${(bytes.length / 1e6).toFixed(1)} MB, labels ${student.spec.labels.join(", ")}`);
  } catch (error) {
    say(`${name}: ${error.message}`, true);
  }
}

async function download(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`the server says ${answer.status}`);
  return answer.arrayBuffer();
}

function say(text, wrong = false) {
  at("status").textContent = text;
  at("status").className = wrong ? "error" : "";
}

at("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) open(file.name, () => file.arrayBuffer());
});

at("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const started = performance.now();
  try {
    const { label, probabilities, tokens } = await student.classify(at("text").value);
    const rows = Object.entries(probabilities).sort((a, b) => b[1] - a[1]);
    at("answer").querySelector("tbody").replaceChildren(...rows.map(([name, p]) => row(name, p)));
    at("label").textContent = label;
    at("answer").hidden = false;
    say(`${tokens} tokens, ${(performance.now() - started).toFixed(1)} ms`);
  } catch (error) {
    say(error.message, true);
  }
});

function row(name, p) {
  const found = document.createElement("tr");
  const bar = document.createElement("meter");
  bar.value = p;
  for (const content of [name, p.toFixed(4), bar]) {
    const cell = document.createElement("td");
    cell.append(content);
    found.append(cell);
  }
  return found;
}

const given = new URLSearchParams(location.search).get("model");
if (given) open(given, () => download(new URL(given, location.href)));
