import assert from "node:assert/strict";
import { test } from "node:test";
import { rfc3339 } from "../../src/sys/time.ts";

test("times are written as RFC 3339 in UTC", () => {
  const table: [number, string][] = [
    [0, "1970-01-01T00:00:00.000Z"],
    [951_782_400_000, "2000-02-29T00:00:00.000Z"],
    [1_772_323_199_999, "2026-02-28T23:59:59.999Z"],
    [1_772_323_200_000, "2026-03-01T00:00:00.000Z"],
    [1_795_000_000_123, "2026-11-18T11:06:40.123Z"],
    [4_107_542_400_000, "2100-03-01T00:00:00.000Z"],
    [253_402_300_799_999, "9999-12-31T23:59:59.999Z"],
  ];
  for (const [ms, text] of table) assert.equal(rfc3339(ms), text);
});
