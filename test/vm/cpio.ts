/** Initramfs images: the cpio format that the kernel unpacks, "newc", as its initramfs documentation defines it. */

import * as fs from "node:fs";
import * as path from "node:path";

export type Entry =
  | { kind: "folder" }
  | { kind: "file"; mode: number; data: Uint8Array }
  | { kind: "link"; target: string }
  | { kind: "node"; mode: number; major: number; minor: number };

const TYPE = { folder: 0o040000, file: 0o100000, link: 0o120000, node: 0o020000 } as const;

/** An archive of the entries, all owned by root. Folders that a path needs are put in before it. */
export function cpio(entries: ReadonlyMap<string, Entry>): Uint8Array {
  const whole = new Map<string, Entry>();
  for (const [name, entry] of entries) {
    const parts = name.split("/");
    for (let i = 1; i < parts.length; i++) {
      const folder = parts.slice(0, i).join("/");
      if (!whole.has(folder)) whole.set(folder, { kind: "folder" });
    }
    whole.set(name, entry);
  }
  const chunks: Uint8Array[] = [];
  let inode = 0;
  for (const [name, entry] of whole) chunks.push(...member(name, entry, ++inode));
  chunks.push(...member("TRAILER!!!", { kind: "file", mode: 0, data: new Uint8Array() }, 0));
  return Buffer.concat(chunks);
}

/** A header of fourteen hexadecimal fields, the name and the data, each padded to four bytes. */
function member(name: string, entry: Entry, inode: number): Uint8Array[] {
  const data = entry.kind === "file" ? entry.data : Buffer.from(entry.kind === "link" ? entry.target : "");
  const mode = TYPE[entry.kind] | (entry.kind === "file" || entry.kind === "node" ? entry.mode : 0o755);
  const [major, minor] = entry.kind === "node" ? [entry.major, entry.minor] : [0, 0];
  const spelled = Buffer.from(`${name}\0`);
  const fields = [inode, mode, 0, 0, 1, 0, data.length, 0, 0, major, minor, spelled.length, 0];
  const header = Buffer.from(`070701${fields.map((field) => field.toString(16).padStart(8, "0")).join("")}`);
  const padding = (length: number) => Buffer.alloc(-length & 3);
  return [header, spelled, padding(header.length + spelled.length), data, padding(data.length)];
}

/** The entry of a file of this machine, with its mode. What a link points to is taken, not the link. */
export function fileEntry(file: string): Entry {
  return { kind: "file", mode: fs.statSync(file).mode & 0o777, data: fs.readFileSync(path.resolve(file)) };
}
