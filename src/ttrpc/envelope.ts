/** The messages that requests and responses are, with their limits. */

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { BinaryReader, WireType } from "@bufbuild/protobuf/wire";
import { EMPTY, MAX_BODY } from "./frame.ts";
import { type KeyValue, KeyValueSchema, type Request, RequestSchema, ResponseSchema } from "./gen/ttrpc_pb.js";
import { type Metadata, type MetadataInit, metadataOf, pairsOf } from "./metadata.ts";
import { Code, oversizeError, TtrpcError, textOf } from "./status.ts";

/** Of metadata or of details. In 4 MiB there could be two million, each an object of a hundred bytes. */
const MAX_FIELDS = 4096;

const NO_UNKNOWN = { readUnknownFields: false };

/** The longest timeout that a request can carry. */
const LONGEST_NANO = 2n ** 63n - 1n;

/** @param timeoutMs what is left until the deadline; `undefined` where there is none */
export function encodeRequest(
  service: string,
  method: string,
  payload: Uint8Array,
  timeoutMs: number | undefined,
  metadata: MetadataInit | undefined,
): Uint8Array {
  const request = create(RequestSchema, { service, method, payload });
  if (timeoutMs !== undefined) request.timeoutNano = nanoseconds(timeoutMs);
  if (metadata !== undefined) request.metadata = [...pairsOf(metadata)].map((pair) => create(KeyValueSchema, pair));
  return checked(toBinary(RequestSchema, request));
}

/** At least 1, since 0 is no deadline. */
function nanoseconds(ms: number): bigint {
  const nano = ms * 1e6;
  return nano >= 2 ** 63 ? LONGEST_NANO : BigInt(Math.max(1, Math.round(nano)));
}

type Pair = Pick<KeyValue, "key" | "value">;

/** What a request says (ttrpc.proto). */
export interface ReadRequest extends Readonly<Pick<Request, "service" | "method" | "payload">> {
  /** From now on; 0 is no deadline, and below it one that has passed. */
  readonly timeoutNano: number;
  /** Each a KeyValue that nobody has looked into: few handlers want them. */
  readonly metadata: readonly Uint8Array[];
}

/** How a request begins that names one method. */
interface Head {
  readonly bytes: Uint8Array;
  readonly service: string;
  readonly method: string;
}

/** Methods that are remembered, and bytes of what names one. */
const MOST_HEADS = 16;
const LONGEST_HEAD = 256;
/** Of metadata; a request with more is looked at closely. */
const MOST_PAIRS = 16;

/** Decodes the requests of one client, which calls the same few methods again and again, and names them first. */
export class RequestDecoder {
  readonly #heads: Head[] = [];

  /** @throws TtrpcError InvalidArgument */
  decode(body: Uint8Array): ReadRequest {
    const known = this.#heads.find(({ bytes }) => startsWith(body, bytes));
    const read = known && readAfter(known, body);
    if (read !== undefined) return read;
    return decoding("the request", () => {
      checkFields(body, 0);
      return readRequest(body, (head) => {
        if (known === undefined && this.#heads.length < MOST_HEADS) this.#heads.push(head);
      });
    });
  }
}

function startsWith(body: Uint8Array, beginning: Uint8Array): boolean {
  for (let at = 0; at < beginning.length; at++) if (body[at] !== beginning[at]) return false;
  return true;
}

/** What follows a head that is known, where that is what all clients send; `undefined` to have it looked at closely. */
function readAfter({ bytes, service, method }: Head, body: Uint8Array): ReadRequest | undefined {
  let at = bytes.length;
  let last = 0;
  let payload: Uint8Array = EMPTY;
  let timeoutNano = 0;
  const metadata: Uint8Array[] = [];
  while (at < body.length) {
    const tag = body[at++] as number;
    if (tag < last || (tag === last && tag !== METADATA) || metadata.length === MOST_PAIRS) return undefined;
    last = tag;
    let value = 0;
    let byte = 0x80;
    for (let unit = 1; byte > 0x7f; unit *= 0x80) {
      if (unit > 2 ** 42 || at === body.length) return undefined;
      byte = body[at++] as number;
      value += (byte & 0x7f) * unit;
    }
    if (tag === TIMEOUT) {
      timeoutNano = value;
      continue;
    }
    if ((tag !== PAYLOAD_OF_REQUEST && tag !== METADATA) || value > body.length - at) return undefined;
    const part = body.subarray(at, at + value);
    at += value;
    if (tag === METADATA) metadata.push(part);
    else payload = part;
  }
  return { service, method, payload, timeoutNano, metadata };
}

/** @throws TtrpcError InvalidArgument */
export function decodeMetadata(pairs: ReadRequest["metadata"]): Metadata {
  return decoding("the request's metadata", () => metadataOf(pairs.map(readPair)));
}

function decoding<T>(what: string, decode: () => T): T {
  try {
    return decode();
  } catch (thrown) {
    throw new TtrpcError(Code.InvalidArgument, `cannot decode ${what}: ${textOf(thrown)}`);
  }
}

/** By hand, as `encodeReply`: each call has them, and protobuf-es goes by descriptions. */
function readRequest(body: Uint8Array, found: (head: Head) => void): ReadRequest {
  const reader = new BinaryReader(body);
  let [service, method, timeoutNano] = ["", "", 0];
  let payload: Uint8Array = EMPTY;
  const metadata: Uint8Array[] = [];
  let [last, isInOrder, headLength] = [0, true, 0];
  while (reader.pos < body.length) {
    const tag = reader.uint32();
    const field = tag >>> FIELD;
    if (field === 1) service = reader.string(true);
    else if (field === 2) method = reader.string(true);
    else if (field === 3) payload = reader.bytes();
    else if (field === 4) timeoutNano = Number(reader.int64());
    else if (field === 5) metadata.push(reader.bytes());
    else skip(reader, tag);
    isInOrder &&= field >= last;
    last = field;
    if (field <= 2) headLength = reader.pos;
  }
  // In order, no later field changes what the first two say.
  if (isInOrder && service !== "" && method !== "" && headLength <= LONGEST_HEAD) {
    found({ bytes: body.slice(0, headLength), service, method });
  }
  return { service, method, payload, timeoutNano, metadata };
}

function readPair(bytes: Uint8Array): Pair {
  const reader = new BinaryReader(bytes);
  let [key, value] = ["", ""];
  while (reader.pos < bytes.length) {
    const tag = reader.uint32();
    const field = tag >>> FIELD;
    if (field === 1) key = reader.string(true);
    else if (field === 2) value = reader.string(true);
    else skip(reader, tag);
  }
  return { key, value };
}

/** A tag holds the type of what follows, and above that the number of the field. */
const FIELD = 3;
const TYPE = 7;
const PAYLOAD_OF_REQUEST = (3 << FIELD) | WireType.LengthDelimited;
const TIMEOUT = (4 << FIELD) | WireType.Varint;
const METADATA = (5 << FIELD) | WireType.LengthDelimited;

function skip(reader: BinaryReader, tag: number): void {
  if (tag >>> FIELD === 0) throw new Error("illegal tag: field no 0");
  reader.skip(tag & TYPE, tag >>> FIELD);
}

/** How a response begins that has a payload and no status. */
const PAYLOAD = (2 << 3) | WireType.LengthDelimited;

/** @throws TtrpcError ResourceExhausted */
export function encodeReply(payload: Uint8Array): Uint8Array {
  const { length } = payload;
  if (length === 0) return EMPTY;
  const head = [PAYLOAD];
  let left = length;
  for (; left > 0x7f; left >>>= 7) head.push((left & 0x7f) | 0x80);
  head.push(left);
  const body = new Uint8Array(head.length + length);
  body.set(head);
  body.set(payload, head.length);
  return checked(body);
}

export function encodeError(error: TtrpcError): Uint8Array {
  const { code, message } = error;
  const response = create(ResponseSchema, { status: { code: int32(code), message, details: [...error.details] } });
  const body = toBinary(ResponseSchema, response);
  return body.length <= MAX_BODY ? body : encodeError(oversizeError(body.length, MAX_BODY));
}

/** A code that its message could not hold would lose us the error. */
function int32(code: number): number {
  return Number.isInteger(code) && code === (code | 0) ? code : Code.Unknown;
}

/** @returns the payload of a response whose status is OK */
export function decodeResponse(body: Uint8Array): Uint8Array {
  const { status, payload } = ((): ReturnType<typeof read> => {
    try {
      return read(body);
    } catch (thrown) {
      throw new TtrpcError(Code.Internal, `cannot decode the response: ${textOf(thrown)}`);
    }
  })();
  if (status !== undefined && status.code !== Code.Ok) {
    throw new TtrpcError(status.code, status.message, status.details);
  }
  return payload;
}

function read(body: Uint8Array) {
  checkFields(body, 1);
  return fromBinary(ResponseSchema, body, NO_UNKNOWN);
}

/** @throws TtrpcError ResourceExhausted: a peer would refuse it */
export function checked(body: Uint8Array): Uint8Array {
  if (body.length > MAX_BODY) throw oversizeError(body.length, MAX_BODY);
  return body;
}

/**
 * Throws where a message has too many fields.
 *
 * @param nested the number of a field that is a message, whose fields count too; 0 for none
 */
function checkFields(body: Uint8Array, nested: number): void {
  if (body.length <= 2 * MAX_FIELDS) return; // a field has two bytes at least
  let fields = 0;
  const count = (bytes: Uint8Array, inner: number): void => {
    const reader = new BinaryReader(bytes);
    while (reader.pos < reader.len) {
      const [field, type] = reader.tag();
      if (++fields > MAX_FIELDS) throw new Error(`it has more than ${MAX_FIELDS} fields`);
      if (inner !== 0 && field === inner && type === WireType.LengthDelimited) count(reader.bytes(), 0);
      else reader.skip(type, field);
    }
  };
  count(body, nested);
}
