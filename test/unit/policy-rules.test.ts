import assert from "node:assert/strict";
import { test } from "node:test";
import { DEFAULTS, loadSettings, type Rule, type ShareMode } from "../../src/policy/config.ts";
import { checkRules, isLike, type RuledDevice } from "../../src/policy/rules.ts";
import { memory } from "../support/memory-files.ts";
import { random } from "../support/random.ts";

const GPU0 = "nvidia.com/gpu=0";
const UUID0 = "nvidia.com/gpu=GPU-dc7f00e3";

function ruled(name: string, names: readonly string[] = [name], parts: readonly string[] = []): RuledDevice {
  return { what: `annotation gpu.sluice.dev asks for ${name}`, names, parts };
}

/** The code of what is thrown, and which rule it names; `ok` where nothing is. */
function check(
  rules: { readonly allow?: readonly Rule[]; readonly deny?: readonly Rule[] },
  devices: readonly RuledDevice[],
  namespace?: string,
  mode: ShareMode = "exclusive",
): string {
  try {
    checkRules({ ...DEFAULTS.policy, allow: [], deny: [], ...rules }, namespace, devices, mode);
    return "ok";
  } catch (thrown) {
    return (thrown as Error).message;
  }
}

test("a pattern is the text itself, with * for any characters, none too", () => {
  for (const [text, pattern, expected] of [
    ["", "", true],
    ["a", "", false],
    ["", "*", true],
    ["", "**", true],
    ["abc", "abc", true],
    ["abc", "ab", false],
    ["abc", "*", true],
    ["abc", "a*", true],
    ["abc", "*c", true],
    ["abc", "*b*", true],
    ["abc", "a*c", true],
    ["abc", "a*b*c", true],
    ["abc", "abc*", true],
    ["abc", "*abc", true],
    ["abc", "a*bc*c", false],
    // The two ends must not be the same characters.
    ["aba", "aba*aba", false],
    ["ab", "ab*b", false],
    ["abab", "ab*ab", true],
    ["aXbXc", "a*X*X*c", true],
    ["aXc", "a*X*X*c", false],
    // Nothing else is special.
    ["a.c", "a.c", true],
    ["abc", "a.c", false],
    ["abc", "a?c", false],
    ["abc", "[abc]*", false],
    [GPU0, "nvidia.com/gpu=*", true],
    ["nvidia.com/gpu=10", "nvidia.com/gpu=1", false],
  ] as const) {
    assert.equal(isLike(text, pattern), expected, `${text} like ${pattern}`);
  }
});

test("patterns of any form mean what the regular expression means that they stand for", () => {
  const next = random(20_260_101);
  const below = (limit: number): number => Math.floor(next() * limit);
  const word = (letters: string, most: number): string =>
    Array.from({ length: below(most + 1) }, () => letters[below(letters.length)]).join("");
  for (let i = 0; i < 5000; i++) {
    const [text, pattern] = [word("ab", 8), word("ab*", 6)];
    const expected = new RegExp(`^${pattern.replaceAll("*", ".*")}$`).test(text);
    assert.equal(isLike(text, pattern), expected, `${text} like ${pattern}`);
  }
});

test("a pattern that would make a backtracking matcher go astray is decided by few looks", () => {
  const text = "a".repeat(16_384);
  assert.equal(isLike(text, `${"a*".repeat(250)}b`), false);
  assert.equal(isLike(`${text}b`, `${"a*".repeat(250)}b`), true);
  assert.equal(isLike(text, `*${"aab*".repeat(120)}`), false);
});

test("without rules everything may be had; where some allow, one must fit", () => {
  assert.equal(check({}, [ruled(GPU0)]), "ok");
  assert.equal(check({ allow: [{ device: "nvidia.com/*" }] }, [ruled(GPU0)]), "ok");
  assert.match(
    check({ allow: [{ device: "amd.com/*" }, { device: "intel.com/*" }] }, [ruled(GPU0)]),
    /^E_NOT_ALLOWED: annotation gpu\.sluice\.dev asks for nvidia\.com\/gpu=0, which none of the rules policy\.allow/,
  );
  assert.match(check({ allow: [{ device: GPU0 }] }, [ruled(GPU0), ruled("nvidia.com/gpu=1")]), /asks for .*gpu=1/);
});

test("deny wins over allow, and the message shows the rule", () => {
  const deny = [{ device: "x.com/*" }, { namespace: "dev-*", device: "*=0", mode: "exclusive" }] as const;
  assert.match(
    check({ allow: [{ device: "*" }], deny }, [ruled(GPU0)], "dev-1"),
    /in the namespace "dev-1", .* policy\.deny \{ namespace = "dev-\*", device = "\*=0", mode = "exclusive" \} forbids/,
  );
});

test("a rule holds for a device under all its names", () => {
  const names = [GPU0, UUID0];
  for (const name of names) {
    for (const device of names) {
      assert.match(check({ deny: [{ device }] }, [ruled(name, names)]), /^E_NOT_ALLOWED/);
      assert.equal(check({ allow: [{ device }] }, [ruled(name, names)]), "ok");
    }
  }
});

test("what holds a device that is denied is denied too; to have it all, a part that is allowed does not do", () => {
  const all = ruled("nvidia.com/gpu=all", ["nvidia.com/gpu=all"], [GPU0, UUID0, "nvidia.com/gpu=1"]);
  assert.match(check({ deny: [{ device: UUID0 }] }, [all]), /^E_NOT_ALLOWED: .*gpu=all/);
  assert.match(check({ allow: [{ device: GPU0 }] }, [all]), /^E_NOT_ALLOWED: .*gpu=all/);
  assert.equal(check({ allow: [{ device: "nvidia.com/gpu=all" }] }, [all]), "ok");
});

test("a rule for namespaces says nothing of containers outside pods", () => {
  assert.equal(check({ deny: [{ namespace: "*" }] }, [ruled(GPU0)]), "ok");
  assert.match(check({ deny: [{ namespace: "*" }] }, [ruled(GPU0)], "default"), /^E_NOT_ALLOWED/);
  // So what only namespaces may have is not for them.
  assert.match(check({ allow: [{ namespace: "*" }] }, [ruled(GPU0)]), /^E_NOT_ALLOWED/);
  assert.equal(check({ allow: [{ namespace: "team-*" }] }, [ruled(GPU0)], "team-a"), "ok");
  assert.match(check({ allow: [{ namespace: "team-*" }] }, [ruled(GPU0)], "xteam-a"), /^E_NOT_ALLOWED/);
});

test("a rule for a mode holds for that mode only", () => {
  assert.equal(check({ deny: [{ mode: "mps" }] }, [ruled(GPU0)]), "ok");
  assert.match(check({ deny: [{ mode: "mps" }] }, [ruled(GPU0)], undefined, "mps"), /^E_NOT_ALLOWED/);
  assert.match(check({ allow: [{ mode: "mps" }] }, [ruled(GPU0)]), /^E_NOT_ALLOWED/);
});

test("rules are read from the settings, in their order, and wrong ones are told", () => {
  const settings = (text: string) => loadSettings(memory({ "/c.toml": text }), "/c.toml", { required: true });
  const { policy } = settings(`
    [[policy.allow]]
    namespace = "team-*"
    device = "nvidia.com/gpu=*"
    [[policy.allow]]
    mode = "mig"
    [[policy.deny]]
    device = "nvidia.com/gpu=0"
  `);
  assert.deepEqual(JSON.parse(JSON.stringify([policy.allow, policy.deny])), [
    [{ namespace: "team-*", device: "nvidia.com/gpu=*" }, { mode: "mig" }],
    [{ device: GPU0 }],
  ]);
  assert.equal(policy.trust, "auto");
  for (const text of [
    "[[policy.deny]]\n",
    '[[policy.deny]]\nnamespace = "Team"\n',
    '[[policy.deny]]\ndevice = ""\n',
    '[[policy.deny]]\ndevice = "a b"\n',
    '[[policy.deny]]\nmode = "shared"\n',
    '[policy]\ndeny = "all"\n',
    '[policy]\ndeny = ["all"]\n',
    '[policy]\ndeny = { device = "x" }\n',
    `[policy]\ndeny = [${'{ device = "x" },'.repeat(257)}]\n`,
  ]) {
    assert.throws(() => settings(text), { code: "E_CONFIG_VALUE", message: /policy\.deny/ }, text);
  }
  assert.throws(() => settings('[[policy.deny]]\nnamespaces = "x"\n'), { code: "E_CONFIG_KEY", message: /namespaces/ });
});
