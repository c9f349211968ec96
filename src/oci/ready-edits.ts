/**
 * Edits as text, ready to be put into a config.json: what one start has written, the next need not make again. Most of a
 * driver's edits are the same fifty mounts for every container.
 *
 *     {"rest":[...],"devices":<length>,"rules":<length>,"groups":[[<depth>,<length>],...],"folders":[[<folder>,<length>],...]}
 *     <devices><cgroup rules><mounts, group by group><names in the folders, each between line breaks>
 *
 * What has a length is the JSON of array elements, parted by commas. A group is all mounts of one depth, since that is how
 * mounts are ordered. Of destinations only as much is kept apart as tells whether a container mounts something there
 * itself, which is nearly never so: then the folder of its mount is none of these.
 */

import type { ContainerEdits } from "../cdi/spec.ts";
import { applyEdits, depthOf, hasUserNamespace, ownerOf, toDevices, toMount } from "./apply.ts";
import { Elements } from "./lossless.ts";
import { withoutPresent } from "./present.ts";
import type { Config, LinuxDevice, Mount } from "./spec.ts";

interface Head {
  /** Edits without mounts and device nodes. */
  readonly rest: readonly ContainerEdits[];
  readonly devices: number;
  readonly rules: number;
  readonly groups: readonly (readonly [depth: number, length: number])[];
  readonly folders: readonly (readonly [folder: string, length: number])[];
}

const NEWLINE = "\n";

export class ReadyEdits {
  readonly #head: Head;
  readonly #text: string;

  private constructor(head: Head, text: string) {
    this.#head = head;
    this.#text = text;
  }

  /**
   * The form in which edits are kept; `undefined` where two mounts have one destination, or one cannot be written in it:
   * such edits are applied one by one.
   *
   * @param edits with their device nodes resolved
   */
  static textOf(edits: readonly ContainerEdits[]): string | undefined {
    const groups = new Map<number, string[]>();
    const folders = new Map<string, string[]>();
    const seen = new Set<string>();
    for (const mount of edits.flatMap((edit) => edit.mounts ?? [])) {
      const destination = mount.containerPath;
      if (seen.has(destination) || destination.includes(NEWLINE)) return undefined;
      seen.add(destination);
      const [folder, name] = split(destination);
      listIn(folders, folder).push(name);
      listIn(groups, depthOf(destination)).push(JSON.stringify(toMount(mount, false)));
    }
    const { devices, rules } = toDevices(
      edits.flatMap((edit) => edit.deviceNodes ?? []),
      undefined,
    );
    const nodes = [elements(devices), elements(rules)] as const;
    const mounts = [...groups].sort((a, b) => a[0] - b[0]).map(([depth, all]) => [depth, all.join()] as const);
    const names = [...folders].map(([folder, all]) => [folder, NEWLINE + all.join(NEWLINE) + NEWLINE] as const);
    const head: Head = {
      rest: edits.map(({ mounts: _, deviceNodes: __, ...rest }) => rest),
      devices: nodes[0].length,
      rules: nodes[1].length,
      groups: mounts.map(([depth, text]) => [depth, text.length]),
      folders: names.map(([folder, text]) => [folder, text.length]),
    };
    return [JSON.stringify(head), NEWLINE, ...nodes, ...[...mounts, ...names].map(([, text]) => text)].join("");
  }

  /** @returns `undefined` where the text is not what `textOf` gives */
  static parse(text: string): ReadyEdits | undefined {
    const start = text.indexOf(NEWLINE) + 1;
    try {
      const head = JSON.parse(text.slice(0, start)) as Head;
      let length = start + head.devices + head.rules;
      for (const [, size] of head.groups) length += size;
      for (const [, size] of head.folders) length += size;
      return length === text.length && Array.isArray(head.rest) ? new ReadyEdits(head, text.slice(start)) : undefined;
    } catch {
      return undefined;
    }
  }

  /**
   * The tree for `patchJson` of a config.json with these edits, as `applyEdits` and `withoutPresent` make it; `undefined`
   * for a container that needs them one by one: it has devices of its own, or its mounts differ from all others'.
   */
  applyTo(config: Config): object | undefined {
    const { rest, devices, rules, groups } = this.#head;
    const { linux } = config;
    const mounts = config.mounts ?? [];
    if ((linux?.devices ?? []).length > 0 || mounts.length === 0 || hasUserNamespace(config)) return undefined;
    const next: Record<string, unknown> = { ...applyEdits(config, withoutPresent(config, rest)) };
    if (devices > 0) next["linux"] = { ...(next["linux"] ?? {}), devices: this.#devicesFor(config) };
    if (rules > 0) {
      const all = [...(linux?.resources?.devices ?? []), this.#elements(devices, devices + rules)];
      next["linux"] = { ...(next["linux"] ?? {}), resources: { ...linux?.resources, devices: all } };
    }
    if (groups.length > 0) next["mounts"] = this.#mergeMounts(mounts);
    return next;
  }

  #elements(start: number, end: number): Elements {
    return new Elements(this.#text.slice(start, end));
  }

  #devicesFor({ process }: Config): (LinuxDevice | Elements)[] {
    const owner = ownerOf(process?.user);
    const ready = this.#elements(0, this.#head.devices);
    if (owner.uid === undefined && owner.gid === undefined) return [ready];
    return (JSON.parse(`[${ready.text}]`) as LinuxDevice[]).map((device) => ({ ...device, ...owner, ...device }));
  }

  #mergeMounts(old: readonly Mount[]): (Mount | Elements)[] {
    const levels = new Map<number, (Mount | Elements)[]>();
    const replaced = new Set<string>();
    for (const mount of old) {
      const { destination } = mount;
      // Only the first of several mounts of a destination is replaced.
      if (this.#has(destination) && !replaced.has(destination)) replaced.add(destination);
      else listIn(levels, depthOf(destination)).push(mount);
    }
    let at = this.#head.devices + this.#head.rules;
    for (const [depth, length] of this.#head.groups) {
      listIn(levels, depth).push(this.#elements(at, at + length));
      at += length;
    }
    return [...levels].sort((a, b) => a[0] - b[0]).flatMap((level) => level[1]);
  }

  /** Whether one of these mounts has the destination. */
  #has(destination: string): boolean {
    const [wanted, name] = split(destination);
    let end = this.#text.length;
    for (let i = this.#head.folders.length - 1; i >= 0; i--) {
      const [folder, length] = this.#head.folders[i] as Head["folders"][number];
      if (folder === wanted) return this.#text.slice(end - length, end).includes(NEWLINE + name + NEWLINE);
      end -= length;
    }
    return false;
  }
}

function elements(values: readonly unknown[]): string {
  return JSON.stringify(values).slice(1, -1);
}

function split(destination: string): [folder: string, name: string] {
  const slash = destination.lastIndexOf("/") + 1;
  return [destination.slice(0, slash), destination.slice(slash)];
}

function listIn<K, T>(lists: Map<K, T[]>, key: K): T[] {
  let list = lists.get(key);
  if (list === undefined) {
    list = [];
    lists.set(key, list);
  }
  return list;
}
