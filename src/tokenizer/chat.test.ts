import { describe, expect, it } from "vitest";
import { chatTokens, encodeChat, renderChat } from "./chat.ts";
import { buildHuggingFaceTokenizer } from "./huggingface.ts";
import { trainByteBpe } from "./train.ts";

const chatml =
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
const marked =
  "{% for m in messages %}\n{% if m.role == 'assistant' %}\n{{ '<|im_start|>assistant\n' }}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}\n{{ '\n' }}{% else %}\n{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}\n{% endfor %}\n";
const files = trainByteBpe(["hello there, how are you? fine."], {
  vocabSize: 270,
  specialTokens: ["<|im_start|>", "<|im_end|>"],
  eosToken: "<|im_end|>",
});
const tokenizer = buildHuggingFaceTokenizer({ ...files, chatTemplate: chatml });
const messages = [
  { role: "user", content: "hello" },
  { role: "assistant", content: "how are you?" },
  { role: "user", content: "fine" },
  { role: "assistant", content: "good" },
];
const written = "how are you?<|im_end|>";

describe("chat templates", () => {
  it("render messages and the beginning of the answer", () => {
    expect(renderChat(tokenizer, messages.slice(0, 1), { addGenerationPrompt: true })).toBe(
      "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n",
    );
    expect(tokenizer.decode(encodeChat(tokenizer, messages), { skipSpecialTokens: false })).toBe(renderChat(tokenizer, messages));
  });

  it("find the assistant's ids by rendering turn by turn", () => {
    const { ids, assistantMask, text } = chatTokens(tokenizer, messages);
    expect(text).toBe(renderChat(tokenizer, messages));
    const kept = tokenizer.decode(
      [...ids].filter((_, i) => assistantMask[i] === 1),
      { skipSpecialTokens: false },
    );
    expect(kept).toBe("how are you?<|im_end|>\ngood<|im_end|>\n");
  });

  it("find the assistant's ids by the template's own marks", () => {
    const { ids, assistantMask, text } = chatTokens(tokenizer, messages, { template: marked });
    expect(text).toBe(renderChat(tokenizer, messages));
    expect(
      tokenizer.decode(
        [...ids].filter((_, i) => assistantMask[i] === 1),
        { skipSpecialTokens: false },
      ),
    ).toBe(`${written}good<|im_end|>`);
  });

  it("refuse a template that rewrites earlier turns when no marks say who wrote what", () => {
    const template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}";
    expect(() => chatTokens(tokenizer, messages, { template })).toThrow(/changes the text before it/);
  });

  it("say what a template raised", () => {
    expect(() => renderChat(tokenizer, messages, { template: "{{ raise_exception('roles must alternate') }}" })).toThrow(
      /roles must alternate/,
    );
    expect(() => renderChat(tokenizer, messages, { template: "{% for" })).toThrow(/chat template/);
  });

  it("end a template that loops or swells without end", () => {
    const loop = "{% for a in range(9999) %}{% for b in range(9999) %}{% set c = a %}{% endfor %}{% endfor %}";
    expect(() => renderChat(tokenizer, messages, { template: loop })).toThrow(/steps/);
    expect(() => renderChat(tokenizer, messages, { template: "{% for a in range(10000000000) %}{% endfor %}" })).toThrow(/range/);
    const swell = `{% set x = 'aaaaaaaaaaaaaaaa' %}${"{% set x = x ~ x %}".repeat(40)}{{ x }}`;
    expect(() => renderChat(tokenizer, messages, { template: swell })).toThrow(/characters/);
  });

  it("name what is missing when the tokenizer has no template", () => {
    expect(() => renderChat(buildHuggingFaceTokenizer(files), messages)).toThrow(/has none/);
  });
});
