/**
 * YAML as the CDI reference library reads it: YAML 1.1 scalars where the field is a number or a flag, and texts as they
 * are written everywhere else (`name: 0` and `name: 0:1` are names). Built on the event stream of js-yaml, so that no
 * value is made before its place is known, and so that nothing expands beyond a bound.
 */

import { EVENT_ID, type Event, getScalarValue, parseEvents, SCALAR_STYLE, YAMLException } from "js-yaml";
import { quote } from "../sys/error.ts";
import type { SyntaxFault } from "./problem.ts";

/** Twice what a spec needs (its deepest field lies 9 nodes deep); bounds the parser's backtracking too. */
const MAX_DEPTH = 20;
/** Of the whole document with every alias expanded. A spec of 128 devices with 50 edits each has 40,000. */
const MAX_NODES = 100_000;

// Keys in lower case: the keys of a spec match without regard to case.
const NUMBER_FIELDS = new Set(["major", "minor", "filemode", "uid", "gid", "timeout", "additionalgids"]);
const FLAG_FIELDS = new Set(["enablemonitoring", "enablecmt", "enablembm"]);

const NULL = /^(?:|~|null|Null|NULL)$/;
const TRUE = /^(?:y|Y|yes|Yes|YES|true|True|TRUE|on|On|ON)$/;
const FALSE = /^(?:n|N|no|No|NO|false|False|FALSE|off|Off|OFF)$/;
const INTEGER = /^([-+]?)(?:(0x[0-9a-fA-F]+|0b[01]+)|0o?([0-7]+)|(0|[1-9][0-9]*))$/;
const NUMBER_LIKE = /^[-+]?(?:\.?[0-9]|0[xob])[0-9a-fA-F_.eE+-]*$/;

/** What a scalar may become: set by the field that it is in. */
type Wanted = "text" | "number" | "flag";

interface Scalar {
  readonly source: string;
  /** Plain (not in quotes, not a block), so that it may stand for something other than its text. */
  readonly plain: boolean;
}

interface Anchor {
  readonly value: unknown;
  readonly scalar: Scalar | undefined;
  /** Nodes that the value has, aliases in it expanded. */
  readonly size: number;
}

interface Frame {
  readonly list: unknown[] | undefined;
  readonly map: Record<string, unknown> | undefined;
  /** What the items of a list become, or the values of a map that is not a record of fields (annotations). */
  readonly wanted: Wanted;
  readonly isAnnotations: boolean;
  readonly anchor: string | undefined;
  readonly nodesBefore: number;
  key: string | undefined;
  keyIsMerge: boolean;
  /** Keys that came by a merge, which a key of the map itself may override. */
  readonly merged: Set<string>;
}

class Refused extends Error {
  readonly offset: number;
  constructor(offset: number, what: string) {
    super(what);
    this.offset = offset;
  }
}

function wantedBy(field: string): Wanted {
  const lower = field.toLowerCase();
  return NUMBER_FIELDS.has(lower) ? "number" : FLAG_FIELDS.has(lower) ? "flag" : "text";
}

function resolve(scalar: Scalar, wanted: Wanted): unknown {
  const { source } = scalar;
  if (!scalar.plain) return source;
  if (NULL.test(source)) return null;
  if (wanted === "flag") return TRUE.test(source) ? true : FALSE.test(source) ? false : source;
  if (wanted === "text") return source;
  const match = INTEGER.exec(source.replaceAll("_", ""));
  // What is left as a text is refused where a number must be.
  if (match === null) return source;
  const [, sign, prefixed, octal, decimal] = match;
  const value = octal === undefined ? Number(prefixed ?? decimal) : Number.parseInt(octal, 8);
  return sign === "-" ? -value : value;
}

/** Line and column of an offset, both from 1. */
function place(text: string, offset: number): { line: number; column: number } {
  const before = text.slice(0, offset);
  return {
    line: before.split(/\r\n?|\n/).length,
    column: offset - Math.max(before.lastIndexOf("\n"), before.lastIndexOf("\r")),
  };
}

/** How a collection is tagged; only the tags of plain data are taken. */
function checkTag(text: string, event: { tagStart: number; tagEnd: number }, allowed: readonly string[]): string {
  if (event.tagStart < 0) return "";
  const tag = text.slice(event.tagStart, event.tagEnd);
  if (!allowed.includes(tag)) throw new Refused(event.tagStart, `the tag ${quote(tag)} has no place in a CDI spec`);
  return tag;
}

function scalarOf(text: string, event: Event & { type: typeof EVENT_ID.SCALAR }): Scalar {
  const tag = checkTag(text, event, ["!", "!!str", "!!int", "!!bool", "!!null"]);
  const plain = event.style === SCALAR_STYLE.PLAIN;
  return { source: getScalarValue(text, event), plain: tag === "" ? plain : tag !== "!" && tag !== "!!str" };
}

function offsetOf(event: Event): number {
  switch (event.type) {
    case EVENT_ID.SCALAR:
      return event.valueStart >= 0 ? event.valueStart : Math.max(event.tagStart, event.anchorStart, 0);
    case EVENT_ID.SEQUENCE:
    case EVENT_ID.MAPPING:
      return event.start;
    case EVENT_ID.ALIAS:
      return event.anchorStart;
    default:
      return 0;
  }
}

function mergeInto(frame: Frame, map: Record<string, unknown>, value: unknown, offset: number): void {
  const sources = Array.isArray(value) ? value : [value];
  for (const source of sources) {
    if (typeof source !== "object" || source === null || Array.isArray(source)) {
      throw new Refused(offset, "a merge key (<<) must name an object or a list of objects");
    }
    for (const key of Object.keys(source)) {
      if (Object.hasOwn(map, key)) continue;
      map[key] = (source as Record<string, unknown>)[key];
      frame.merged.add(key);
    }
  }
}

function keyOf(scalar: Scalar, offset: number): string {
  const { source, plain } = scalar;
  if (plain && (NULL.test(source) || TRUE.test(source) || FALSE.test(source) || NUMBER_LIKE.test(source))) {
    throw new Refused(offset, `the key ${quote(source)} is not a text; put it in quotes`);
  }
  // An assignment to it would change the object's prototype.
  if (source === "__proto__") throw new Refused(offset, 'no field is named "__proto__"');
  return source;
}

function construct(text: string, events: readonly Event[]): unknown {
  const anchors = new Map<string, Anchor | undefined>();
  const frames: Frame[] = [];
  let nodes = 0;
  let documents = 0;
  let result: unknown;

  const count = (size: number, offset: number): void => {
    nodes += size;
    if (nodes > MAX_NODES) throw new Refused(offset, `it expands to more than ${MAX_NODES} values`);
  };
  const wantedHere = (): Wanted => {
    const frame = frames.at(-1);
    if (frame === undefined) return "text";
    return frame.map === undefined || frame.isAnnotations ? frame.wanted : wantedBy(frame.key ?? "");
  };
  const add = (value: unknown, offset: number): void => {
    const frame = frames.at(-1);
    if (frame === undefined) {
      result = value;
    } else if (frame.list !== undefined) {
      frame.list.push(value);
    } else if (frame.map !== undefined && frame.key !== undefined) {
      if (frame.keyIsMerge) mergeInto(frame, frame.map, value, offset);
      else frame.map[frame.key] = value;
      frame.key = undefined;
    } else {
      throw new Refused(offset, "a key must be a text, not a list, an object or an alias");
    }
  };
  const open = (
    event: { anchorStart: number; anchorEnd: number },
    list: unknown[] | undefined,
    map: Record<string, unknown> | undefined,
    offset: number,
  ): void => {
    const parent = frames.at(-1);
    if (parent?.map !== undefined && parent.key === undefined) {
      throw new Refused(offset, "a key must be a text, not a list or an object");
    }
    const anchor = event.anchorStart < 0 ? undefined : text.slice(event.anchorStart, event.anchorEnd);
    // Known from here on, but without a value until it ends: an alias to it inside itself is refused.
    if (anchor !== undefined) anchors.set(anchor, undefined);
    frames.push({
      list,
      map,
      wanted: map === undefined ? wantedHere() : "text",
      isAnnotations: parent?.key?.toLowerCase() === "annotations",
      anchor,
      nodesBefore: nodes,
      key: undefined,
      keyIsMerge: false,
      merged: new Set(),
    });
    count(1, offset);
  };

  for (const event of events) {
    const offset = offsetOf(event);
    switch (event.type) {
      case EVENT_ID.DOCUMENT:
        documents++;
        if (event.directives.some((directive) => directive.kind === "tag")) {
          throw new Refused(0, "%TAG has no place in a CDI spec");
        }
        break;
      case EVENT_ID.SCALAR: {
        if (documents > 1) throw new Refused(offset, "there is a second document in the file; a spec is one");
        const scalar = scalarOf(text, event);
        const frame = frames.at(-1);
        const anchor = event.anchorStart < 0 ? undefined : text.slice(event.anchorStart, event.anchorEnd);
        count(1, offset);
        if (frame?.map !== undefined && frame.key === undefined) {
          const isMerge = scalar.plain && scalar.source === "<<";
          const key = keyOf(scalar, offset);
          if (!isMerge && Object.hasOwn(frame.map, key) && !frame.merged.delete(key)) {
            throw new Refused(offset, `the key ${quote(key)} is there twice`);
          }
          frame.key = key;
          frame.keyIsMerge = isMerge;
          if (anchor !== undefined) anchors.set(anchor, { value: key, scalar, size: 1 });
          break;
        }
        const value = resolve(scalar, wantedHere());
        if (anchor !== undefined) anchors.set(anchor, { value, scalar, size: 1 });
        add(value, offset);
        break;
      }
      case EVENT_ID.SEQUENCE:
      case EVENT_ID.MAPPING:
        if (documents > 1) throw new Refused(offset, "there is a second document in the file; a spec is one");
        if (event.type === EVENT_ID.SEQUENCE) {
          checkTag(text, event, ["!!seq"]);
          open(event, [], undefined, offset);
        } else {
          checkTag(text, event, ["!!map"]);
          open(event, undefined, {}, offset);
        }
        break;
      case EVENT_ID.ALIAS: {
        const name = text.slice(event.anchorStart, event.anchorEnd);
        const anchor = anchors.get(name);
        if (anchor === undefined) {
          throw new Refused(
            offset,
            anchors.has(name)
              ? `the alias ${quote(name)} stands inside what it names`
              : `nothing is named ${quote(name)}`,
          );
        }
        count(anchor.size, offset);
        add(anchor.scalar === undefined ? anchor.value : resolve(anchor.scalar, wantedHere()), offset);
        break;
      }
      default: {
        const frame = frames.pop();
        if (frame === undefined) break; // the end of a document
        const value = frame.list ?? frame.map;
        if (frame.anchor !== undefined) {
          anchors.set(frame.anchor, { value, scalar: undefined, size: nodes - frame.nodesBefore });
        }
        add(value, offset);
      }
    }
  }
  if (documents === 0 || result === null) throw new Refused(0, "the file is empty");
  return result;
}

/**
 * The one document of a text as plain data: objects, lists, texts, and numbers, flags and `null` where CDI has them.
 * Values behind an alias are shared, not copied. Never throws: a thrown error would not keep its class on its way out of
 * a lazily loaded part.
 */
export function parseYaml(text: string): { readonly value: unknown } | { readonly fault: SyntaxFault } {
  try {
    return { value: construct(text, parseEvents(text, { maxDepth: MAX_DEPTH })) };
  } catch (e) {
    if (e instanceof YAMLException) {
      return { fault: { line: (e.mark?.line ?? 0) + 1, column: (e.mark?.column ?? 0) + 1, what: e.reason } };
    }
    if (e instanceof Refused) return { fault: { ...place(text, e.offset), what: e.message } };
    // The engine itself gave up (its stack or its memory).
    return { fault: { line: 1, column: 1, what: e instanceof Error ? e.message : String(e) } };
  }
}
