/** NRI's mux: frames as they come, and as they must go. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { MAX_PAYLOAD, Mux } from "../../src/nri/mux.ts";
import type { ByteStream, Receiver } from "../../src/ttrpc/stream.ts";
import { random } from "../support/random.ts";

/** A trunk by hand: what was written to it, and what is to arrive. */
class Trunk implements ByteStream {
  receiver: Receiver | undefined;
  readonly written: Buffer[] = [];
  readonly calls: string[] = [];
  start(receiver: Receiver): void {
    this.receiver = receiver;
  }
  write(parts: readonly Uint8Array[]): undefined {
    this.written.push(Buffer.concat(parts));
  }
  pause(): void {
    this.calls.push("pause");
  }
  resume(): void {
    this.calls.push("resume");
  }
  close(): void {
    this.calls.push("close");
  }
}

function frame(id: number, payload: Uint8Array | string): Buffer {
  const header = Buffer.alloc(8);
  header.writeUInt32BE(id, 0);
  header.writeUInt32BE(payload.length, 4);
  return Buffer.concat([header, Buffer.from(payload)]);
}

/** Channels 1 and 2 with what arrived on each. */
function open(): { trunk: Trunk; mux: Mux; channels: ByteStream[]; got: Buffer[]; ends: (Error | undefined)[][] } {
  const trunk = new Trunk();
  const mux = new Mux(trunk);
  const got = [Buffer.alloc(0), Buffer.alloc(0)];
  const ends: (Error | undefined)[][] = [[], []];
  const channels = [1, 2].map((id) => mux.open(id));
  for (const [i, channel] of channels.entries()) {
    channel.start({
      data(bytes) {
        got[i] = Buffer.concat([got[i] as Buffer, bytes]);
      },
      closed: (error) => ends[i]?.push(error),
    });
  }
  mux.start(() => {});
  return { trunk, mux, channels, got, ends };
}

test("frames arrive whole, whatever pieces they come in", () => {
  const bytes = Buffer.concat([
    frame(1, "abc"),
    frame(2, ""),
    frame(7, "for nobody"),
    frame(2, "de"),
    frame(1, ""),
    frame(1, "f"),
    frame(2, "ghijkl"),
  ]);
  const check = (cuts: number[], what: string): void => {
    const { trunk, got } = open();
    for (const [i, cut] of [...cuts, bytes.length].entries()) {
      trunk.receiver?.data(bytes.subarray(cuts[i - 1] ?? 0, cut));
    }
    assert.deepEqual(got.map(String), ["abcf", "deghijkl"], what);
  };
  for (let a = 0; a <= bytes.length; a++) for (let b = a; b <= bytes.length; b++) check([a, b], `cut at ${a} and ${b}`);
  check(
    Array.from({ length: bytes.length }, (_, i) => i),
    "one by one",
  );
});

test("random frames in random pieces arrive", () => {
  const seed = Date.now() & 0xffff;
  const next = random(seed);
  const number = (below: number) => Math.floor(next() * below);
  for (let round = 0; round < 200; round++) {
    const { trunk, got } = open();
    const sent = [Buffer.alloc(0), Buffer.alloc(0)];
    const frames: Buffer[] = [];
    for (let i = number(12); i >= 0; i--) {
      const payload = Buffer.from(
        Array.from({ length: number(3) === 0 ? number(20_000) : number(20) }, () => number(256)),
      );
      const id = 1 + number(3);
      frames.push(frame(id, payload));
      if (id <= 2) sent[id - 1] = Buffer.concat([sent[id - 1] as Buffer, payload]);
    }
    const bytes = Buffer.concat(frames);
    for (let at = 0; at < bytes.length; ) {
      const length = 1 + number(number(2) === 0 ? 9 : 9_000);
      trunk.receiver?.data(bytes.subarray(at, at + length));
      at += length;
    }
    assert.ok(
      got.every((channel, i) => channel.equals(sent[i] as Buffer)),
      `seed ${seed}, round ${round}`,
    );
  }
});

test("a frame above the limit ends all, by its header alone; one at the limit does not", () => {
  const header = (length: number): Buffer => {
    const bytes = Buffer.alloc(8);
    bytes.writeUInt32BE(1, 0);
    bytes.writeUInt32BE(length, 4);
    return bytes;
  };
  for (const length of [MAX_PAYLOAD + 1, 0x8000_0000, 0xffff_ffff]) {
    const { trunk, got, ends, channels } = open();
    trunk.receiver?.data(Buffer.concat([header(length), Buffer.from("more"), frame(2, "x")]));
    assert.deepEqual(got.map(String), ["", ""]);
    for (const of of ends) {
      assert.equal(of.length, 1);
      assert.match(String(of[0]?.message), new RegExp(`^E_NRI_PROTOCOL: .* ${length} bytes`));
    }
    assert.deepEqual(trunk.calls, ["close"]);
    trunk.receiver?.data(frame(1, "late"));
    trunk.receiver?.closed();
    void channels[0]?.write([Buffer.from("late")]);
    assert.deepEqual([got.map(String), trunk.written.length, ends[0]?.length], [["", ""], 0, 1]);
  }
  const { trunk, got, ends } = open();
  trunk.receiver?.data(header(MAX_PAYLOAD));
  trunk.receiver?.data(new Uint8Array(MAX_PAYLOAD));
  trunk.receiver?.data(frame(2, "x"));
  assert.deepEqual([got[0]?.length, String(got[1]), ends[0]], [MAX_PAYLOAD, "x", []]);
});

test("random bytes neither throw nor keep anything", () => {
  const seed = Date.now() & 0xffff;
  const next = random(seed);
  for (let round = 0; round < 300; round++) {
    const { trunk } = open();
    for (let i = 0; i < 20; i++) {
      const bytes = Buffer.from(Array.from({ length: Math.floor(next() * 200) }, () => Math.floor(next() * 256)));
      // Often a header that is taken: a known channel, and a length that does not end it at once.
      if (next() < 0.5 && bytes.length > 8) bytes.set([0, 0, 0, 1, 0, 0, 0, Math.floor(next() * 200)]);
      assert.doesNotThrow(() => trunk.receiver?.data(bytes), `seed ${seed}, round ${round}`);
    }
  }
});

test("a message leaves in one write, its ttrpc header and its body in a frame each", () => {
  const seed = Date.now() & 0xffff;
  const next = random(seed);
  for (let round = 0; round < 500; round++) {
    const { trunk, channels } = open();
    const length = [0, 1, 4085, 4086, 4087, 70_000, Math.floor(next() * 300_000)][round % 7] as number;
    const message = Buffer.alloc(10 + length, round);
    const cuts = Array.from({ length: Math.floor(next() * 4) }, () => Math.floor(next() * message.length)).sort(
      (a, b) => a - b,
    );
    const parts = [...cuts, message.length].map((cut, i) => message.subarray(cuts[i - 1] ?? 0, cut));
    void channels[1]?.write(round % 2 === 0 ? [message.subarray(0, 10), message.subarray(10)] : parts);
    const frames = [frame(2, message.subarray(0, 10)), ...(length === 0 ? [] : [frame(2, message.subarray(10))])];
    assert.equal(trunk.written.length, 1);
    assert.ok(trunk.written[0]?.equals(Buffer.concat(frames)), `seed ${seed}, round ${round}`);
  }
});

test("what one channel cannot take holds up the trunk, until all can", () => {
  const { trunk, channels } = open();
  const [one, two] = channels as [ByteStream, ByteStream];
  one.pause();
  one.pause();
  two.pause();
  one.resume();
  one.resume();
  assert.deepEqual(trunk.calls, ["pause"]);
  two.close();
  assert.deepEqual(trunk.calls, ["pause", "resume"], "a channel that is closed holds up nothing");
});

test("the end of the trunk is that of all channels, once; that of a channel is its own", () => {
  const { trunk, mux, channels, got, ends } = open();
  channels[0]?.close();
  assert.deepEqual(ends, [[undefined], []]);
  trunk.receiver?.data(Buffer.concat([frame(1, "x"), frame(2, "y")]));
  assert.deepEqual(got.map(String), ["", "y"]);
  const broke = new Error("broke");
  trunk.receiver?.closed(broke);
  mux.close();
  assert.deepEqual(ends, [[undefined], [broke]]);
});
