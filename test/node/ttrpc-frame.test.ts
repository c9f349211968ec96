import assert from "node:assert/strict";
import { test } from "node:test";
import { DATA, FrameReader, frameHeader, HEADER_LENGTH, MAX_BODY, REQUEST, RESPONSE } from "../../src/ttrpc/frame.ts";
import { below, type Rand } from "../support/fuzz.ts";
import { random } from "../support/random.ts";

interface Seen {
  id: number;
  type: number;
  flags: number;
  body: number[];
}

/** A reader, and what it has read; a frame that was too long has its length for a body. */
function reading(): { reader: FrameReader; seen: Seen[]; oversize: [id: number, type: number, length: number][] } {
  const seen: Seen[] = [];
  const oversize: [number, number, number][] = [];
  const reader = new FrameReader({
    frame: (id, type, flags, body) => seen.push({ id, type, flags, body: [...body] }),
    oversize: (id, type, length) => oversize.push([id, type, length]),
  });
  return { reader, seen, oversize };
}

function bytesOf({ id, type, flags, body }: Seen): number[] {
  return [...frameHeader(body.length, id, type, flags), ...body];
}

const FRAMES: Seen[] = [
  { id: 1, type: REQUEST, flags: 2, body: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12] },
  { id: 1, type: DATA, flags: 0, body: [] },
  { id: 0xffff_ffff, type: RESPONSE, flags: 0, body: [255] },
  { id: 3, type: 200, flags: 255, body: [0, 0] },
  { id: 1, type: DATA, flags: 5, body: [] },
];

const WIRE = Uint8Array.from(FRAMES.flatMap(bytesOf));

test("a header is ten bytes, big-endian", () => {
  assert.deepEqual([...frameHeader(0x01020304, 0xf1f2f3f4, 3, 5)], [1, 2, 3, 4, 0xf1, 0xf2, 0xf3, 0xf4, 3, 5]);
  assert.equal(HEADER_LENGTH, 10);
});

test("frames are read as they were written, in one piece, byte by byte, and cut in two at every place", () => {
  const cuts: number[][] = [[], Array.from(WIRE, (_, at) => at)];
  for (let at = 0; at <= WIRE.length; at++) cuts.push([at]);
  for (const places of cuts) {
    const { reader, seen } = reading();
    let from = 0;
    for (const to of [...places, WIRE.length]) {
      reader.push(WIRE.slice(from, to));
      from = to;
    }
    assert.deepEqual(seen, FRAMES, `cut at ${places}`);
  }
});

function someFrame(rand: Rand): Seen {
  const length = rand() < 0.3 ? 0 : below(rand, rand() < 0.05 ? 200_000 : 300);
  const seed = below(rand, 256);
  return {
    id: below(rand, 0x1_0000_0000),
    type: below(rand, 256),
    flags: below(rand, 256),
    body: Array.from({ length }, (_, at) => (seed + at * 7) & 255),
  };
}

test("any frames, cut and merged in any way, are read as they were written", () => {
  for (let seed = 1; seed <= 25; seed++) {
    const rand = random(seed);
    const frames = Array.from({ length: 1 + below(rand, 8) }, () => someFrame(rand));
    const wire = Uint8Array.from(frames.flatMap(bytesOf));
    const { reader, seen } = reading();
    const longest = rand() < 0.5 ? 40 : 100_000;
    for (let from = 0; from < wire.length; ) {
      const to = from + below(rand, longest);
      reader.push(wire.slice(from, to));
      from = to;
    }
    assert.equal(seen.length, frames.length, `seed ${seed}`);
    for (const [at, frame] of frames.entries()) {
      const { body, ...rest } = seen[at] as Seen;
      const same = body.length === frame.body.length && body.every((byte, i) => byte === frame.body[i]);
      assert.deepEqual(
        [rest.id, rest.type, rest.flags, same],
        [frame.id, frame.type, frame.flags, true],
        `seed ${seed}`,
      );
    }
  }
});

test("a body may have 4 MiB; a longer one is passed over to its last byte and told", () => {
  for (const extra of [0, 1]) {
    const lengths: number[] = [];
    const told: number[][] = [];
    const reader = new FrameReader({
      frame: (id, _, __, body) => lengths.push(id, body.length),
      oversize: (id, type, length) => told.push([id, type, length]),
    });
    reader.push(frameHeader(MAX_BODY + extra, 5, REQUEST, 0));
    const piece = new Uint8Array(1 << 16).fill(1);
    for (let i = 0; i < MAX_BODY / piece.length; i++) reader.push(piece);
    // The last byte of the longer one, and the next frame.
    reader.push(Uint8Array.from([...(extra === 1 ? [1] : []), ...frameHeader(1, 7, DATA, 0), 9]));
    assert.deepEqual(lengths, extra === 0 ? [5, MAX_BODY, 7, 1] : [7, 1]);
    assert.deepEqual(told, extra === 0 ? [] : [[5, REQUEST, MAX_BODY + 1]]);
  }
});

test("the longest length that a header can name is counted down, not kept", () => {
  const { reader, seen, oversize } = reading();
  reader.push(frameHeader(0xffff_ffff, 5, REQUEST, 0));
  const piece = new Uint8Array(4 << 20);
  for (let i = 0; i < 1024; i++) reader.push(i === 1023 ? piece.subarray(1) : piece);
  assert.deepEqual([seen, oversize], [[], [[5, REQUEST, 0xffff_ffff]]]);
  reader.push(WIRE);
  assert.deepEqual(seen, FRAMES);
});

test("after stop nothing is read, not even what came in the same piece", () => {
  const ids: number[] = [];
  const reader = new FrameReader({
    frame(id) {
      ids.push(id);
      reader.stop();
    },
    oversize() {},
  });
  reader.push(WIRE);
  reader.push(WIRE);
  assert.deepEqual(ids, [1]);
});

test("a receiver that throws finds the reader at the next frame", () => {
  const ids: number[] = [];
  const reader = new FrameReader({
    frame(id) {
      ids.push(id);
      throw new Error("no");
    },
    oversize() {},
  });
  assert.throws(() => reader.push(frameHeader(0, 1, 1, 0)), /^Error: no$/);
  assert.throws(() => reader.push(frameHeader(0, 3, 1, 0)), /^Error: no$/);
  assert.deepEqual(ids, [1, 3]);
});

test("any bytes at all are frames: nothing throws", () => {
  for (let seed = 1; seed <= 60; seed++) {
    const rand = random(seed);
    const { reader } = reading();
    for (let i = 0; i < 20; i++) {
      const bytes = Uint8Array.from({ length: below(rand, 200) }, () => (rand() < 0.7 ? 0 : below(rand, 256)));
      reader.push(bytes);
    }
  }
});
