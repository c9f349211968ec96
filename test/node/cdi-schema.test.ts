import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Ajv } from "ajv";
import { checkSpec } from "../../src/cdi/validate.part.ts";
import { BAD, BAD_TOGETHER, GOOD, LENIENT } from "../support/cdi-corpus.ts";

const schema = JSON.parse(readFileSync(new URL("../../schemas/cdi-spec.json", import.meta.url), "utf8"));
const validate = new Ajv({ strict: true, strictRequired: false, strictTypes: false }).compile(schema);

test("the schema takes every good spec that the validator takes", () => {
  for (const [name, value] of Object.entries(GOOD)) {
    assert.equal(validate(value), true, `${name}: ${JSON.stringify(validate.errors)}`);
    assert.deepEqual(checkSpec(value).problems, [], name);
  }
});

test("the schema refuses every bad spec that the validator refuses", () => {
  for (const [name, [value]] of Object.entries(BAD)) {
    assert.equal(validate(value), false, name);
    assert.notEqual(checkSpec(value).problems.length, 0, name);
  }
});

test("what relates two places of a spec is for the validator alone", () => {
  for (const [name, [value]] of Object.entries(BAD_TOGETHER)) {
    assert.equal(validate(value), true, `${name}: ${JSON.stringify(validate.errors)}`);
    assert.notEqual(checkSpec(value).problems.length, 0, name);
  }
});

test("the schema takes what the validator makes of a spec that is not canonical, and not the spec itself", () => {
  for (const [name, [value]] of Object.entries(LENIENT)) {
    assert.equal(validate(value), false, name);
    assert.equal(validate(checkSpec(value).spec), true, `${name}: ${JSON.stringify(validate.errors)}`);
  }
});
