import type { KeyValue } from "./gen/ttrpc_pb.js";

/** What a handler reads: each key, in lower case, with its values in their order. */
export type Metadata = ReadonlyMap<string, readonly string[]>;

/** What a caller gives: `{ "containerd-namespace-ttrpc": "k8s.io" }`. */
export type MetadataInit = Readonly<Record<string, string | readonly string[]>>;

export function metadataOf(pairs: readonly Pick<KeyValue, "key" | "value">[]): Metadata {
  const all = new Map<string, string[]>();
  for (const { key, value } of pairs) {
    const name = key.toLowerCase();
    const values = all.get(name);
    if (values === undefined) all.set(name, [value]);
    else values.push(value);
  }
  return all;
}

/** Pairs as a request has them. Keys are written in lower case, as Go's library does. */
export function* pairsOf(metadata: MetadataInit): Generator<{ key: string; value: string }> {
  for (const [name, values] of Object.entries(metadata)) {
    const key = name.toLowerCase();
    if (typeof values === "string") yield { key, value: values };
    else for (const value of values) yield { key, value };
  }
}
