import assert from "node:assert/strict";
import { test } from "node:test";
import { parseConfig } from "../../src/policy/config.part.ts";
import { loadSettings } from "../../src/policy/config.ts";
import { SluiceError } from "../../src/sys/error.ts";
import { MemorySys } from "../support/memory-files.ts";
import { random } from "../support/random.ts";

const PATH = "/etc/sluice/config.toml";

/** The whole message for a file's text; empty if it is accepted. */
function messageFor(text: string): string {
  try {
    loadSettings(new MemorySys({ [PATH]: text }), PATH);
    return "";
  } catch (error) {
    if (error instanceof SluiceError) return error.message;
    throw error;
  }
}

test("an unknown key is named with the one that was meant", () => {
  for (const [text, message] of [
    ['[cdi]\nspec-dirs = ["/x"]', `E_CONFIG_KEY: ${PATH}: there is no key cdi.spec-dirs; did you mean cdi.spec_dirs?`],
    ['[cdi]\nspec_dir = "/x"', `E_CONFIG_KEY: ${PATH}: there is no key cdi.spec_dir; did you mean cdi.spec_dirs?`],
    ['[Policy]\ntrust = "engine"', `E_CONFIG_KEY: ${PATH}: there is no key Policy; did you mean policy?`],
    [
      '[policies]\ntrust = "engine"',
      `E_CONFIG_KEY: ${PATH}: there is no key policies; remove it; at the top there are runtime, cdi, policy, share, daemon`,
    ],
    ['[runtime]\ntrust = "engine"', `E_CONFIG_KEY: ${PATH}: there is no key runtime.trust; did you mean policy.trust?`],
    ['trust = "engine"', `E_CONFIG_KEY: ${PATH}: there is no key trust; did you mean policy.trust?`],
    [
      "[cdi.sub]\nx = 1",
      `E_CONFIG_KEY: ${PATH}: there is no key cdi.sub; remove it; in [cdi] there are spec_dirs, default_kind`,
    ],
  ] as const) {
    assert.equal(messageFor(text), message);
  }
});

test("a wrong value is named with its key, what it should be and the default", () => {
  const dirs =
    'set it to a list of 1 to 16 different absolute paths, or remove it for the default ["/etc/cdi","/var/run/cdi"]';
  for (const [text, message] of [
    ["cdi = 1", "cdi is 1; set it to a table"],
    ["[[cdi]]", "cdi is a list of 1; set it to a table"],
    [
      '[policy]\ntrust = "Engine"',
      'policy.trust is "Engine"; set it to "auto", "engine" or "allocated", or remove it for the default "auto"',
    ],
    [
      "[policy]\ntrust = true",
      'policy.trust is true; set it to "auto", "engine" or "allocated", or remove it for the default "auto"',
    ],
    [
      '[policy]\nfeatures = ["gds", "gds"]',
      'policy.features is ["gds", "gds"]; set it to a list of "gds", "mofed", "gdrcopy", "nvswitch", "imex", ' +
        '"mig-config", "mig-monitor", each at most once, or remove it for the default []',
    ],
    [
      '[policy]\nfeatures = ["all"]',
      'policy.features[0] is "all"; set it to one of "gds", "mofed", "gdrcopy", "nvswitch", "imex", "mig-config", ' +
        '"mig-monitor"',
    ],
    [
      "[share]\ndefault_mode = inf",
      'share.default_mode is Infinity; set it to one of "exclusive", "timeslice", "mig", "mps", "limiter", "vgpu", or remove it for the default "exclusive"',
    ],
    ['[cdi]\nspec_dirs = "/etc/cdi"', `cdi.spec_dirs is "/etc/cdi"; ${dirs}`],
    ["[cdi]\nspec_dirs = []", `cdi.spec_dirs is []; ${dirs}`],
    ['[cdi]\nspec_dirs = ["/a", "/a"]', `cdi.spec_dirs is ["/a", "/a"]; ${dirs}`],
    ['[cdi]\nspec_dirs = ["/a", "etc"]', 'cdi.spec_dirs[1] is "etc"; set it to an absolute path'],
    ['[cdi]\nspec_dirs = ["/a\\u0000b"]', 'cdi.spec_dirs[0] is "/a\\u0000b"; set it to an absolute path'],
    ["[cdi]\nspec_dirs = [{ a = 1 }]", "cdi.spec_dirs[0] is a table; set it to an absolute path"],
    [
      '[cdi]\ndefault_kind = "gpu"',
      'cdi.default_kind is "gpu"; set it to a CDI kind, vendor/class, or remove it for the default "nvidia.com/gpu"',
    ],
    [
      '[runtime]\nruntimes = ["bin/runc"]',
      'runtime.runtimes[0] is "bin/runc"; set it to a program\'s name or its absolute path',
    ],
  ] as const) {
    assert.equal(messageFor(text), `E_CONFIG_VALUE: ${PATH}: ${message}`);
  }
});

test("kinds that CDI accepts are accepted, others are not", () => {
  const kind = (value: string) => messageFor(`cdi.default_kind = ${JSON.stringify(value)}`);
  for (const good of ["nvidia.com/gpu", "v/c", "a-b.c_d/e-f_g", `${"v".repeat(253)}/${"c".repeat(63)}`]) {
    assert.equal(kind(good), "", good);
  }
  for (const bad of ["", "/", "v/", "/c", "1v/c", "v/1c", "v-/c", "v/c-", "a/b/c", "v /c", "v/c=0", "é/c", "v/c\n"]) {
    assert.match(kind(bad), /^E_CONFIG_VALUE: /, bad);
  }
  assert.match(kind(`${"v".repeat(254)}/c`), /^E_CONFIG_VALUE: /);
  assert.match(kind(`v/${"c".repeat(64)}`), /^E_CONFIG_VALUE: /);
});

test("an error of syntax names line and column", () => {
  for (const [text, place] of [
    ["[cdi\n", "line 1, column 5"],
    ["[cdi]\nspec_dirs = [\n", "line 3, column 1"],
    ['a = "x', "line 1, column 5"],
    ["[cdi]\n\n[cdi]\n", "line 3, column 2"],
    ["a = 1\na = 2\n", "line 2, column 1"],
    ["a = 99999999999999999999", "line 1, column 5"],
    ["=", "line 1, column 1"],
    ["\0", "line 1, column 1"],
  ] as const) {
    const message = messageFor(text);
    assert.ok(message.startsWith(`E_CONFIG_SYNTAX: ${PATH}: ${place}: `), message);
    assert.ok(!message.includes("\n"), "one line");
  }
  assert.equal(
    messageFor("[cdi]\nspec_dirs = 2020-01-01\n"),
    `E_CONFIG_SYNTAX: ${PATH}: line 2, column 13: no key takes a date or time; correct the line; the file is written in TOML`,
  );
});

test("keys with a meaning in JavaScript are unknown keys like any other", () => {
  for (const key of ["__proto__", "constructor", "toString", "hasOwnProperty"]) {
    assert.match(messageFor(`${key} = 1`), new RegExp(`^E_CONFIG_KEY: \\S+ there is no key ${key}; remove it; `));
    assert.match(messageFor(`[${key}]\nx = 1`), /^E_CONFIG_KEY: /);
    assert.match(messageFor(`[cdi.${key}]\ndefault_kind = 1`), /^E_CONFIG_KEY: /);
    assert.match(messageFor(`cdi = { ${key} = { spec_dirs = [] } }`), /^E_CONFIG_KEY: /);
  }
  assert.equal(({} as { x?: unknown }).x, undefined);
});

test("a hostile key or value is escaped and cut in the message", () => {
  assert.match(messageFor('"a\\u001b[31m\\n" = 1'), /there is no key "a\\u001b\[31m\\n"; /);
  assert.match(messageFor('"" = 1'), /there is no key ""; /);
  assert.ok(messageFor(`${"k".repeat(100_000)} = 1`).length < 400);
  assert.ok(messageFor(`policy.trust = "${"v".repeat(100_000)}"`).length < 400);
  assert.ok(messageFor(`cdi.spec_dirs = [${'"/a", '.repeat(10_000)}]`).length < 400);
});

test("deep nesting is refused, not followed", () => {
  for (const text of [
    `cdi.spec_dirs = ${"[".repeat(50_000)}`,
    `cdi.spec_dirs = ${"[".repeat(9)}${"]".repeat(9)}`,
    `cdi = ${"{ a = ".repeat(10_000)}`,
  ]) {
    assert.match(messageFor(text), /^E_CONFIG_SYNTAX: .*excessively nested/);
  }
  assert.match(messageFor(`${"a.".repeat(50_000)}a = 1`), /^E_CONFIG_KEY: /);
  assert.match(messageFor(`[${"a.".repeat(50_000)}a]`), /^E_CONFIG_KEY: /);
});

test("no damage to a good file makes the parser fail other than by an error that says where", () => {
  const good = `# Settings
[runtime]
runtimes = ["runc", "crun"]
[cdi]
spec_dirs = ["/etc/cdi", '/var/run/cdi']
default_kind = "nvidia.com/gpu"
policy = { trust = "engine" }
[share]
default_mode = """exclusive"""
`;
  const pieces = [
    "[",
    "]",
    "{",
    "}",
    '"',
    "'",
    "=",
    ".",
    "\n",
    "\\",
    "\\u12",
    "__proto__",
    "0x",
    "1e9",
    "-",
    "\0",
    "é",
    "\ud800",
  ];
  const next = random(20_240_607);
  const pick = (limit: number) => Math.floor(next() * limit);
  for (let round = 0; round < 3000; round++) {
    let text = good;
    for (let change = pick(4); change >= 0; change--) {
      const at = pick(text.length);
      const piece =
        pick(3) === 0 ? text.slice(pick(text.length)).slice(0, pick(20)) : (pieces[pick(pieces.length)] as string);
      text = text.slice(0, at) + piece + text.slice(at + pick(6));
    }
    const result = parseConfig(text);
    if (!("code" in result)) continue;
    assert.match(result.code, /^E_CONFIG_(?:KEY|VALUE|SYNTAX)$/);
    assert.ok(
      result.what !== "" && !/undefined|\n/.test(result.what + result.remedy),
      JSON.stringify({ text, result }),
    );
  }
});
