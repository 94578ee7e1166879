// OpenAI's client for Node through the gateway: every feature once, each a line of the result.
// node openai_client.mjs CLIENT_FOLDER BASE_URL KEY
import assert from 'node:assert/strict';
import { pathToFileURL } from 'node:url';

const [folder, baseURL, apiKey] = process.argv.slice(2);
const at = (file) => import(pathToFileURL(`${folder}/${file}`).href);
const { default: OpenAI, toFile } = await at('index.mjs');
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: 'user', content: 'hello' }];
const text = 'good film';
const tools = [{ type: 'function', function: { name: 'weather', parameters: { type: 'object' } } }];
const chat = (more) => client.chat.completions.create({ model: 't', messages, ...more });

async function all(stream) {
  const found = [];
  for await (const one of await stream) found.push(one);
  return found;
}

const said = (chunks) => chunks.map((c) => c.choices[0]?.delta.content ?? '').join('');

async function refused(call, kind, status, code) {
  await assert.rejects(call, (error) => {
    assert.ok(error instanceof kind, String(error));
    assert.equal(error.status, status);
    assert.equal(error.code, code);
    assert.match(error.requestID, /^req_/);
    return true;
  });
}

const checks = {
  async plain() {
    const { data, response, request_id } = await chat().withResponse();
    assert.equal(data.choices[0].message.content, text);
    assert.equal(data.usage.total_tokens, 13);
    assert.equal(response.headers.get('x-stillhouse-variant'), 'teacher');
    assert.match(request_id, /^req_/);
  },
  async streamed() {
    const chunks = await all(chat({ stream: true }));
    assert.equal(said(chunks), text);
    assert.ok(chunks.every((one) => !one.usage && one.choices.length === 1));
    const asked = await all(chat({ stream: true, stream_options: { include_usage: true } }));
    assert.equal(asked.at(-1).usage.total_tokens, 13);
  },
  async helper() {
    const stream = client.chat.completions.stream({ model: 't', messages });
    assert.equal(await stream.finalContent(), text);
  },
  async tools() {
    const answer = await chat({ tools, tool_choice: 'auto' });
    assert.equal(answer.choices[0].message.tool_calls[0].function.name, 'weather');
    const chunks = await all(chat({ tools, stream: true }));
    const calls = chunks.flatMap((one) => one.choices[0].delta.tool_calls ?? []);
    assert.deepEqual(JSON.parse(calls.map((one) => one.function.arguments).join('')), {
      city: 'Oslo',
    });
  },
  async schema() {
    const schema = { type: 'object', properties: { label: { type: 'string' } } };
    const answer = await client.chat.completions.parse({
      model: 't',
      messages,
      response_format: { type: 'json_schema', json_schema: { name: 'l', strict: true, schema } },
    });
    assert.deepEqual(answer.choices[0].message.parsed, { label: 'fresh' });
  },
  async logprobs() {
    const answer = await chat({ logprobs: true, top_logprobs: 2, n: 2 });
    assert.equal(answer.choices.length, 2);
    assert.equal(answer.choices[1].logprobs.content[0].top_logprobs.length, 2);
  },
  async completions() {
    const answer = await client.completions.create({ model: 't', prompt: 'a' });
    assert.equal(answer.choices[0].text, text);
    const chunks = await all(client.completions.create({ model: 't', prompt: 'a', stream: true }));
    assert.equal(chunks.map((one) => one.choices[0].text).join(''), text);
  },
  async embeddings() {
    const found = await client.embeddings.create({ model: 't', input: ['a', 'b'] });
    assert.deepEqual(found.data[1].embedding, [1, 2]);
  },
  async models() {
    const names = (await all(client.models.list())).map((one) => one.id);
    assert.deepEqual(names, ['t']);
    assert.equal((await client.models.retrieve('t')).object, 'model');
  },
  async batches() {
    const line = { custom_id: 'c', method: 'POST', url: '/v1/chat/completions' };
    const content = JSON.stringify({ ...line, body: { model: 't', messages } }) + '\n';
    const file = await client.files.create({
      file: await toFile(Buffer.from(content), 'in.jsonl'),
      purpose: 'batch',
    });
    assert.equal(file.bytes, content.length);
    assert.equal(await (await client.files.content(file.id)).text(), content);
    let batch = await client.batches.create({
      input_file_id: file.id,
      endpoint: '/v1/chat/completions',
      completion_window: '24h',
    });
    for (let i = 0; i < 2000 && batch.status !== 'completed'; i++) {
      batch = await client.batches.retrieve(batch.id);
    }
    const out = JSON.parse(await (await client.files.content(batch.output_file_id)).text());
    assert.equal(out.response.body.choices[0].message.content, text);
    assert.ok((await all(client.files.list())).some((one) => one.id === file.id));
    assert.ok((await all(client.batches.list())).some((one) => one.id === batch.id));
    assert.equal((await client.files.delete(file.id)).deleted, true);
  },
  async errors() {
    await refused(() => chat({ messages: [] }), OpenAI.BadRequestError, 400, 'invalid_value');
    await refused(() => chat({ model: 'x' }), OpenAI.NotFoundError, 404, 'model_not_found');
    const wrong = new OpenAI({ baseURL, apiKey: 'wrong', maxRetries: 0 });
    await refused(() => wrong.models.list(), OpenAI.AuthenticationError, 401, 'invalid_api_key');
  },
  async left() {
    const stream = await chat({ stream: true });
    stream.controller.abort();
    assert.ok((await all(stream)).length <= 6);
  },
};

for (const [name, check] of Object.entries(checks)) {
  await check();
  console.log(name);
}
