/**
 * Whom a runtime's request is about, a pod and its container, as far as they are read: whose container it is, what it
 * asks for, and what it has already. All containers of a node wait for each answer, one after the other, and what
 * protobuf-es makes of a whole request (an object for each limit of the container's memory) takes longer than to decide
 * on it. What few containers have is left to protobuf-es here, too.
 */

import { create, type DescMessage, fromBinary, type MessageShape, mergeFromBinary } from "@bufbuild/protobuf";
import { BinaryReader, getTextEncoding, WireType } from "@bufbuild/protobuf/wire";
import { ANNOTATION_PREFIX } from "../cdi/annotations.ts";
import { STAMP } from "../plan/inject.ts";
import { ASK } from "../request/request.ts";
import {
  type Container,
  type Hooks,
  HooksSchema,
  type LinuxDevice,
  type LinuxDeviceCgroup,
  LinuxDeviceSchema,
  type LinuxNamespace,
  type Mount,
  MountSchema,
  type OptionalInt64,
  type PodSandbox,
  type User,
  UserSchema,
} from "./gen/nri_pb.js";

/** A pod as far as it is read; a whole one is one, too. Of annotations those are read that mean something to us. */
export type ReadPod = Readonly<Pick<PodSandbox, "id" | "name" | "uid" | "namespace" | "annotations">>;

export type ReadMount = Readonly<Pick<Mount, "destination" | "type" | "source" | "options">>;

type ReadNumber = Readonly<Pick<OptionalInt64, "value">>;

/** A rule of the device cgroup. */
export interface ReadRule extends Readonly<Pick<LinuxDeviceCgroup, "allow" | "type" | "access">> {
  readonly major?: ReadNumber | undefined;
  readonly minor?: ReadNumber | undefined;
}

export interface ReadLinux {
  readonly namespaces: Pick<LinuxNamespace, "type">[];
  readonly devices: LinuxDevice[];
  readonly resources?: { readonly devices: ReadRule[] } | undefined;
}

/** A container as far as it is read, as with pods. */
export interface ReadContainer extends Readonly<Pick<Container, "id" | "name" | "annotations" | "env">> {
  readonly mounts: ReadMount[];
  readonly hooks?: Hooks | undefined;
  readonly linux?: ReadLinux | undefined;
  readonly user?: User | undefined;
}

export interface Subject {
  /** Where the request names one; else 0. */
  readonly event: number;
  readonly pod?: ReadPod | undefined;
  readonly container?: ReadContainer | undefined;
}

/** The numbers of a request's fields. Others are passed over. */
export interface Layout {
  readonly event?: number;
  readonly pod: number;
  readonly container: number;
}

/** CreateContainerRequest, StartContainerRequest, and all others that have a call of their own. */
export const OWN_CALL: Layout = { pod: 1, container: 2 };
/** StateChangeEvent. */
export const STATE_CHANGE: Layout = { event: 1, pod: 2, container: 3 };

/** Makes texts of parts of the bytes, from a start up to an end, a character of each byte. */
export type Latin1 = (bytes: Uint8Array) => (start: number, end: number) => string;

/** How keys of annotations begin that are looked at: requests, and our own stamp. Most of a request are others. */
const READ = [ASK, ANNOTATION_PREFIX, STAMP];

/** @throws Error for bytes that are no such message */
export function readSubject(bytes: Uint8Array, layout: Layout, latin1: Latin1 = charactersOf): Subject {
  const reader = new Reader(bytes, latin1);
  // A message that comes in parts is one of them all, here and below.
  let event = 0;
  let pod: PodDraft | undefined;
  let container: ContainerDraft | undefined;
  while (reader.pos < bytes.length) {
    const tag = reader.uint32();
    const field = tag >>> FIELD;
    if (field === layout.pod) {
      pod ??= new PodDraft();
      readPod(reader, pod);
    } else if (field === layout.container) {
      container ??= new ContainerDraft();
      readContainer(reader, container);
    } else if (field === layout.event) {
      event = reader.int32();
    } else {
      pass(reader, tag);
    }
  }
  if (reader.pos > bytes.length) throw new RangeError("premature EOF");
  return { event, pod, container };
}

/** Bytes of which characters are made at once. */
const PIECE = 4096;

const charactersOf: Latin1 = (bytes) => (start, end) => {
  let text = "";
  for (let at = start; at < end; at += PIECE) {
    const codes: number[] = [];
    for (let i = at; i < Math.min(at + PIECE, end); i++) codes.push(bytes[i] as number);
    text += String.fromCharCode(...codes);
  }
  return text;
};

/**
 * Bytes of a request up to which its texts are cut out of one that is the whole: there are a hundred of them. Such a piece
 * keeps the whole in memory, and a device's name may be kept for long (src/plan/memory.ts): pods write large requests.
 */
const USUAL = 16 << 10;

/** Reads texts quickly, as far as they are ASCII. */
class Reader extends BinaryReader {
  readonly #bytes: Uint8Array;
  readonly #characters: ReturnType<Latin1>;
  readonly #text: string;
  readonly #isUsual: boolean;
  /** Where the text begins that was passed last; it ends at `pos`. */
  #start = 0;

  constructor(bytes: Uint8Array, latin1: Latin1) {
    super(bytes);
    this.#bytes = bytes;
    this.#characters = latin1(bytes);
    this.#text = this.#characters(0, bytes.length);
    this.#isUsual = bytes.length <= USUAL;
  }

  /** The text that follows, which may be a piece of the whole. */
  piece(): string {
    return this.#textThatFollows(this.#isUsual);
  }

  /** The text that follows, for who keeps it for each container or pod. */
  own(): string {
    return this.#textThatFollows(false);
  }

  #textThatFollows(isPiece: boolean): string {
    if (!this.#passText()) return utf8(this.part(this.#start, this.pos));
    return isPiece ? this.#text.slice(this.#start, this.pos) : this.#characters(this.#start, this.pos);
  }

  part(start: number, end: number): Uint8Array {
    return this.#bytes.subarray(start, end);
  }

  /** Whether the entry of a map that begins here certainly has a key that begins with none of these. */
  hasOtherKey(beginnings: readonly string[]): boolean {
    const { pos } = this;
    // A key first, and that of less than 128 bytes: so all are written.
    if (this.#bytes[pos] !== KEY || (this.#bytes[pos + 1] as number) > 0x7f) return false;
    return !beginnings.some((beginning) => this.#text.startsWith(beginning, pos + 2));
  }

  /** @returns whether all of it is ASCII */
  #passText(): boolean {
    const end = endOf(this);
    if (end > this.len) throw new RangeError("premature EOF");
    this.#start = this.pos;
    let all = 0;
    for (let at = this.pos; at < end; at++) all |= this.#bytes[at] as number;
    this.pos = end;
    return all < 0x80;
  }
}

function utf8(bytes: Uint8Array): string {
  return getTextEncoding().decodeUtf8(bytes, true);
}

/** A tag holds the type of what follows, and above that the number of the field. */
const FIELD = 3;
const TYPE = 7;
/** The tag of a key in a map of texts. */
const KEY = (1 << FIELD) | WireType.LengthDelimited;

class PodDraft implements ReadPod {
  id = "";
  name = "";
  uid = "";
  namespace = "";
  readonly annotations: Record<string, string> = {};
}

class ContainerDraft implements ReadContainer {
  id = "";
  name = "";
  readonly annotations: Record<string, string> = {};
  readonly env: string[] = [];
  readonly mounts: ReadMount[] = [];
  hooks: Hooks | undefined;
  linux: LinuxDraft | undefined;
  user: User | undefined;
}

class LinuxDraft implements ReadLinux {
  readonly namespaces: { type: string }[] = [];
  readonly devices: LinuxDevice[] = [];
  resources: { readonly devices: ReadRule[] } | undefined;
}

class RuleDraft implements ReadRule {
  allow = false;
  type = "";
  access = "";
  major: ReadNumber | undefined;
  minor: ReadNumber | undefined;
}

function readPod(reader: Reader, pod: PodDraft): void {
  for (const end = endOf(reader); reader.pos < end; ) {
    const tag = reader.uint32();
    switch (tag >>> FIELD) {
      case 1:
        pod.id = reader.own();
        break;
      case 2:
        pod.name = reader.own();
        break;
      case 3:
        pod.uid = reader.own();
        break;
      case 4:
        pod.namespace = reader.own();
        break;
      case 6:
        readEntry(reader, pod.annotations);
        break;
      default:
        pass(reader, tag);
    }
  }
}

function readContainer(reader: Reader, container: ContainerDraft): void {
  for (const end = endOf(reader); reader.pos < end; ) {
    const tag = reader.uint32();
    switch (tag >>> FIELD) {
      case 1:
        container.id = reader.own();
        break;
      case 3:
        container.name = reader.own();
        break;
      case 6:
        readEntry(reader, container.annotations);
        break;
      case 8:
        container.env.push(reader.piece());
        break;
      case 9:
        container.mounts.push(readMount(reader));
        break;
      case 10:
        container.hooks = readHooks(reader, container.hooks);
        break;
      case 11:
        container.linux ??= new LinuxDraft();
        readLinux(reader, container.linux);
        break;
      case 21:
        container.user = merged(reader, UserSchema, container.user);
        break;
      default:
        pass(reader, tag);
    }
  }
}

function readLinux(reader: Reader, linux: LinuxDraft): void {
  for (const end = endOf(reader); reader.pos < end; ) {
    const tag = reader.uint32();
    switch (tag >>> FIELD) {
      case 1:
        linux.namespaces.push(readNamespace(reader));
        break;
      case 2:
        linux.devices.push(merged(reader, LinuxDeviceSchema, undefined));
        break;
      case 3:
        linux.resources ??= { devices: [] };
        readResources(reader, linux.resources);
        break;
      default:
        pass(reader, tag);
    }
  }
}

function readNamespace(reader: Reader): { type: string } {
  const namespace = { type: "" };
  for (const end = endOf(reader); reader.pos < end; ) {
    const tag = reader.uint32();
    if (tag >>> FIELD === 1) namespace.type = reader.piece();
    else pass(reader, tag);
  }
  return namespace;
}

function readResources(reader: Reader, { devices }: { readonly devices: ReadRule[] }): void {
  for (const end = endOf(reader); reader.pos < end; ) {
    const tag = reader.uint32();
    if (tag >>> FIELD === 7) devices.push(readRule(reader));
    else pass(reader, tag);
  }
}

/** Of the device cgroup. */
function readRule(reader: Reader): ReadRule {
  const rule = new RuleDraft();
  for (const end = endOf(reader); reader.pos < end; ) {
    const tag = reader.uint32();
    switch (tag >>> FIELD) {
      case 1:
        rule.allow = reader.bool();
        break;
      case 2:
        rule.type = reader.piece();
        break;
      case 3:
        rule.major = readNumber(reader, rule.major);
        break;
      case 4:
        rule.minor = readNumber(reader, rule.minor);
        break;
      case 5:
        rule.access = reader.piece();
        break;
      default:
        pass(reader, tag);
    }
  }
  return rule;
}

function readNumber(reader: Reader, begun: ReadNumber | undefined): ReadNumber {
  let value = begun?.value ?? 0n;
  for (const end = endOf(reader); reader.pos < end; ) {
    const tag = reader.uint32();
    if (tag >>> FIELD === 1) value = BigInt(reader.int64());
    else pass(reader, tag);
  }
  return { value };
}

/** An engine sends them, with nothing in them, for every container. */
const NO_HOOKS = create(HooksSchema);

function readHooks(reader: Reader, begun: Hooks | undefined): Hooks {
  const bytes = reader.bytes();
  if (bytes.length === 0) return begun ?? NO_HOOKS;
  return mergeFromBinary(HooksSchema, begun === undefined || begun === NO_HOOKS ? create(HooksSchema) : begun, bytes);
}

/** A mount of which the source is looked at, and more only where a plan mounts something at the same place. */
class LazyMount implements ReadMount {
  destination = "";
  source = "";
  readonly #reader: Reader;
  readonly #start: number;
  readonly #end: number;
  #rest: Pick<ReadMount, "type" | "options"> | undefined;

  constructor(reader: Reader, start: number, end: number) {
    this.#reader = reader;
    this.#start = start;
    this.#end = end;
  }

  get type(): string {
    return this.#whole().type;
  }

  get options(): string[] {
    return this.#whole().options;
  }

  #whole(): Pick<ReadMount, "type" | "options"> {
    this.#rest ??= fromBinary(MountSchema, this.#reader.part(this.#start, this.#end));
    return this.#rest;
  }
}

function readMount(reader: Reader): ReadMount {
  const end = endOf(reader);
  const mount = new LazyMount(reader, reader.pos, end);
  while (reader.pos < end) {
    const tag = reader.uint32();
    if (tag >>> FIELD === 1) mount.destination = reader.piece();
    else if (tag >>> FIELD === 3) mount.source = reader.piece();
    else pass(reader, tag);
  }
  reader.pos = end;
  return mount;
}

/** An entry of a map of texts, where its key is one that is looked at. */
function readEntry(reader: Reader, map: Record<string, string>): void {
  const end = endOf(reader);
  if (reader.hasOtherKey(READ)) {
    reader.pos = end;
    return;
  }
  let key = "";
  let value = "";
  while (reader.pos < end) {
    const tag = reader.uint32();
    if (tag >>> FIELD === 1) key = reader.piece();
    else if (tag >>> FIELD === 2) value = reader.piece();
    else pass(reader, tag);
  }
  if (READ.some((beginning) => key.startsWith(beginning))) map[key] = value;
}

function merged<T extends DescMessage>(reader: Reader, schema: T, begun: MessageShape<T> | undefined): MessageShape<T> {
  return mergeFromBinary(schema, begun ?? create(schema), reader.bytes());
}

/** Where the message ends that follows. */
function endOf(reader: BinaryReader): number {
  const length = reader.uint32();
  return reader.pos + length;
}

/** Passes over a field. */
function pass(reader: Reader, tag: number): void {
  const [field, type] = [tag >>> FIELD, tag & TYPE];
  if (field === 0) throw new Error("illegal tag: field no 0");
  if (type !== WireType.LengthDelimited) reader.skip(type, field);
  // As `skip` does, which would make something of what it passes over. That it ends within the message is looked at last.
  else reader.pos = endOf(reader);
}
