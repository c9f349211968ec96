/**
 * The request CreateContainer, as far as it is read: whose container it is, what it asks for, and what it has already.
 * All containers of a node wait for each answer, one after the other, and what protobuf-es makes of a whole request (an
 * object for each limit of the container's memory) takes longer than to decide on it. What few containers have is left
 * to protobuf-es here, too.
 */

import { create, type DescMessage, fromBinary, type MessageShape, mergeFromBinary } from "@bufbuild/protobuf";
import { BinaryReader, WireType } from "@bufbuild/protobuf/wire";
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

/** A pod as far as it is read; a whole one is one, too. */
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

/** A container as far as it is read; a whole one is one, too. */
export interface ReadContainer extends Readonly<Pick<Container, "id" | "name" | "annotations" | "env">> {
  readonly mounts: ReadMount[];
  readonly hooks?: Hooks | undefined;
  readonly linux?: ReadLinux | undefined;
  readonly user?: User | undefined;
}

export interface CreateRequest {
  readonly pod?: ReadPod | undefined;
  readonly container?: ReadContainer | undefined;
}

/** @throws Error for bytes that are no such message */
export function readCreateRequest(bytes: Uint8Array): CreateRequest {
  const reader = new BinaryReader(bytes);
  // A message that comes in parts is one of them all, here and below.
  let pod: PodDraft | undefined;
  let container: ContainerDraft | undefined;
  while (reader.pos < bytes.length) {
    const tag = reader.uint32();
    switch (tag >>> FIELD) {
      case 1:
        pod ??= new PodDraft();
        readPod(reader, pod);
        break;
      case 2:
        container ??= new ContainerDraft();
        readContainer(reader, container, bytes);
        break;
      default:
        pass(reader, tag);
    }
  }
  if (reader.pos > bytes.length) throw new RangeError("premature EOF");
  return { pod, container };
}

/** A tag holds the type of what follows, and above that the number of the field. */
const FIELD = 3;
const TYPE = 7;

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

function readPod(reader: BinaryReader, pod: PodDraft): void {
  for (const end = endOf(reader); reader.pos < end; ) {
    const tag = reader.uint32();
    switch (tag >>> FIELD) {
      case 1:
        pod.id = reader.string(true);
        break;
      case 2:
        pod.name = reader.string(true);
        break;
      case 3:
        pod.uid = reader.string(true);
        break;
      case 4:
        pod.namespace = reader.string(true);
        break;
      case 6:
        readEntry(reader, pod.annotations);
        break;
      default:
        pass(reader, tag);
    }
  }
}

function readContainer(reader: BinaryReader, container: ContainerDraft, request: Uint8Array): void {
  for (const end = endOf(reader); reader.pos < end; ) {
    const tag = reader.uint32();
    switch (tag >>> FIELD) {
      case 1:
        container.id = reader.string(true);
        break;
      case 3:
        container.name = reader.string(true);
        break;
      case 6:
        readEntry(reader, container.annotations);
        break;
      case 8:
        container.env.push(reader.string(true));
        break;
      case 9:
        container.mounts.push(readMount(reader, request));
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

function readLinux(reader: BinaryReader, linux: LinuxDraft): void {
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

function readNamespace(reader: BinaryReader): { type: string } {
  const namespace = { type: "" };
  for (const end = endOf(reader); reader.pos < end; ) {
    const tag = reader.uint32();
    if (tag >>> FIELD === 1) namespace.type = reader.string(true);
    else pass(reader, tag);
  }
  return namespace;
}

function readResources(reader: BinaryReader, { devices }: { readonly devices: ReadRule[] }): void {
  for (const end = endOf(reader); reader.pos < end; ) {
    const tag = reader.uint32();
    if (tag >>> FIELD === 7) devices.push(readRule(reader));
    else pass(reader, tag);
  }
}

/** Of the device cgroup. */
function readRule(reader: BinaryReader): ReadRule {
  const rule = new RuleDraft();
  for (const end = endOf(reader); reader.pos < end; ) {
    const tag = reader.uint32();
    switch (tag >>> FIELD) {
      case 1:
        rule.allow = reader.bool();
        break;
      case 2:
        rule.type = reader.string(true);
        break;
      case 3:
        rule.major = readNumber(reader, rule.major);
        break;
      case 4:
        rule.minor = readNumber(reader, rule.minor);
        break;
      case 5:
        rule.access = reader.string(true);
        break;
      default:
        pass(reader, tag);
    }
  }
  return rule;
}

function readNumber(reader: BinaryReader, begun: ReadNumber | undefined): ReadNumber {
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

function readHooks(reader: BinaryReader, begun: Hooks | undefined): Hooks {
  const bytes = reader.bytes();
  if (bytes.length === 0) return begun ?? NO_HOOKS;
  return mergeFromBinary(HooksSchema, begun === undefined || begun === NO_HOOKS ? create(HooksSchema) : begun, bytes);
}

/** A mount of which the source is looked at, and more only where a plan mounts something at the same place. */
class LazyMount implements ReadMount {
  destination = "";
  source = "";
  readonly #request: Uint8Array;
  readonly #start: number;
  readonly #end: number;
  #rest: Pick<ReadMount, "type" | "options"> | undefined;

  constructor(request: Uint8Array, start: number, end: number) {
    this.#request = request;
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
    this.#rest ??= fromBinary(MountSchema, this.#request.subarray(this.#start, this.#end));
    return this.#rest;
  }
}

function readMount(reader: BinaryReader, request: Uint8Array): ReadMount {
  const end = endOf(reader);
  const mount = new LazyMount(request, reader.pos, end);
  while (reader.pos < end) {
    const tag = reader.uint32();
    if (tag >>> FIELD === 1) mount.destination = reader.string(true);
    else if (tag >>> FIELD === 3) mount.source = reader.string(true);
    else pass(reader, tag);
  }
  reader.pos = end;
  return mount;
}

/** An entry of a map of texts. */
function readEntry(reader: BinaryReader, map: Record<string, string>): void {
  let key = "";
  let value = "";
  for (const end = endOf(reader); reader.pos < end; ) {
    const tag = reader.uint32();
    if (tag >>> FIELD === 1) key = reader.string(true);
    else if (tag >>> FIELD === 2) value = reader.string(true);
    else pass(reader, tag);
  }
  // Set, it would be the map's prototype.
  if (key === "__proto__") Object.defineProperty(map, key, { value, enumerable: true, configurable: true });
  else map[key] = value;
}

function merged<T extends DescMessage>(
  reader: BinaryReader,
  schema: T,
  begun: MessageShape<T> | undefined,
): MessageShape<T> {
  return mergeFromBinary(schema, begun ?? create(schema), reader.bytes());
}

/** Where the message ends that follows. */
function endOf(reader: BinaryReader): number {
  const length = reader.uint32();
  return reader.pos + length;
}

/** Passes over a field. */
function pass(reader: BinaryReader, tag: number): void {
  const [field, type] = [tag >>> FIELD, tag & TYPE];
  if (field === 0) throw new Error("illegal tag: field no 0");
  if (type !== WireType.LengthDelimited) reader.skip(type, field);
  // As `skip` does, which would make something of what it passes over. That it ends within the message is looked at last.
  else reader.pos = endOf(reader);
}
