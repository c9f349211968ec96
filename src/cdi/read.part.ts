/**
 * Reading one spec file: trust, size, JSON or YAML by content, and every rule of the specification. A container start
 * needs it only for a file that the index does not know.
 */

import { OsError, reasonOf } from "../sys/error.ts";
import type { Files, Stat } from "../sys/sys.ts";
import { fileError, folderProblem, isSpecFileName, SPEC_FILE_MAX, type SpecFile, WRITABLE_BY_OTHERS } from "./load.ts";
import { type Problem, type SyntaxFault, shown, wholeFile } from "./problem.ts";
import type { Spec } from "./spec.ts";
import { checkSpec, scanJson } from "./validate.part.ts";
import { parseYaml } from "./yaml.part.ts";

/** The YAML parser keeps some 200 bytes for each token. */
const YAML_FILE_MAX = 1024 * 1024;
/** As many as the kernel follows. */
const LINKS_MAX = 40;

function folderOf(path: string): string {
  const slash = path.lastIndexOf("/");
  return slash < 0 ? "." : slash === 0 ? "/" : path.slice(0, slash);
}

function failed(path: string, e: unknown): Problem {
  const code = e instanceof OsError ? e.code : "";
  if (code === "EFBIG") {
    return wholeFile("E_CDI_TOO_LARGE", `it is larger than ${SPEC_FILE_MAX} bytes`, "remove it, or split it");
  }
  if (code === "EILSEQ") return wholeFile("E_CDI_SYNTAX", "it is not UTF-8", "save it as UTF-8");
  return wholeFile(
    "E_CDI_READ",
    `it cannot be read: ${reasonOf(e)}`,
    `make ${shown(path)} a readable file, or remove it`,
  );
}

/**
 * The same of every folder through which a link leads. What they allow is not part of the file's stamp, so it is looked
 * at each time.
 */
export function linkProblem(files: Files, path: string): Problem | undefined {
  let at = path;
  for (let hops = 0; hops < LINKS_MAX; hops++) {
    try {
      if (files.lstat(at)?.kind !== "link") return undefined;
      const target = files.readLink(at);
      at = target.startsWith("/") ? target : `${folderOf(at)}/${target}`;
      const folder = folderOf(at);
      const stat = files.stat(folder);
      const bad = stat === undefined ? undefined : folderProblem(folder, stat);
      if (bad !== undefined) return bad;
    } catch (e) {
      return failed(path, e);
    }
  }
  return wholeFile("E_CDI_READ", "it is a chain of links without end", "remove it");
}

function fileProblem(path: string, stat: Stat): Problem | undefined {
  if (stat.kind !== "file") return wholeFile("E_CDI_READ", `it is a ${stat.kind}, not a file`, "remove it");
  if ((stat.mode & WRITABLE_BY_OTHERS) !== 0) {
    return wholeFile("E_CDI_UNTRUSTED", "anybody may write to it", `run: chmod o-w ${shown(path)}`);
  }
  if (stat.size > SPEC_FILE_MAX) {
    const what = `it has ${stat.size} bytes, more than ${SPEC_FILE_MAX}`;
    return wholeFile("E_CDI_TOO_LARGE", what, "remove it, or split it");
  }
  return undefined;
}

function syntaxProblem(format: string, fault: SyntaxFault): Problem {
  const what = `it is not ${format}: line ${fault.line}, column ${fault.column}: ${fault.what}`;
  return wholeFile("E_CDI_SYNTAX", what, "correct the text at that place");
}

/** A text as a value. Content decides what it is, not the file's name: the reference library reads all as YAML. */
function parse(path: string, text: string): { value: unknown; jsonFault?: SyntaxFault; isJson: boolean } | Problem {
  let jsonFault: SyntaxFault | undefined;
  if (/^[ \t\n\r]*\{/.test(text)) {
    jsonFault = scanJson(text);
    if (jsonFault === undefined) {
      try {
        return { value: JSON.parse(text), isJson: true };
      } catch (e) {
        return syntaxProblem("JSON", { line: 1, column: 1, what: reasonOf(e) });
      }
    }
  }
  if (text.length > YAML_FILE_MAX) {
    if (jsonFault !== undefined) return syntaxProblem("JSON", jsonFault);
    const what = `it is YAML of ${text.length} characters, more than ${YAML_FILE_MAX}`;
    return wholeFile("E_CDI_TOO_LARGE", what, "write it as JSON, or split it");
  }
  // What starts with { and is not JSON may still be YAML's flow style: keys without quotes, comments.
  const yaml = parseYaml(text);
  if ("value" in yaml) return { value: yaml.value, isJson: false, ...(jsonFault === undefined ? {} : { jsonFault }) };
  if (jsonFault !== undefined && path.endsWith(".json")) return syntaxProblem("JSON", jsonFault);
  return syntaxProblem("YAML", yaml.fault);
}

/** Reads a file whose folder and `stat` are known. Never throws: whatever is wrong with the file is in `problems`. */
export function readSpecFile(files: Files, path: string, stat: Stat): SpecFile {
  const bad = (problems: readonly Problem[]): SpecFile => ({ path, spec: undefined, canonical: false, problems });
  const untrusted = fileProblem(path, stat);
  if (untrusted !== undefined) return bad([untrusted]);
  let text: string;
  try {
    text = files.readText(path, SPEC_FILE_MAX);
  } catch (e) {
    return bad([failed(path, e)]);
  }
  const parsed = parse(path, text);
  if ("code" in parsed) return bad([parsed]);
  const checked = checkSpec(parsed.value);
  if (checked.spec === undefined && parsed.jsonFault !== undefined && path.endsWith(".json")) {
    // JSON with a slip that YAML happens to allow (a missing comma joins two texts) reads as something else.
    return bad([syntaxProblem("JSON", parsed.jsonFault)]);
  }
  const canonical = parsed.isJson && checked.canonical;
  // As a later start reads it, which does not check it again: a plan has the fields in the order of the file.
  const spec = canonical ? (parsed.value as Spec) : checked.spec;
  return { path, spec, canonical, problems: checked.problems };
}

/** Reads any file as a spec, with every check, for `sluice cdi validate`. Never throws. */
export function checkSpecFile(files: Files, path: string): SpecFile {
  const bad = (found: Problem): SpecFile => ({ path, spec: undefined, canonical: false, problems: [found] });
  if (!isSpecFileName(path)) {
    return bad(
      wholeFile("E_CDI_READ", "its name ends neither in .json nor in .yaml", "rename it: no engine would read it"),
    );
  }
  try {
    const stat = files.stat(path);
    if (stat === undefined) return bad(wholeFile("E_CDI_READ", "it does not exist", "correct the path"));
    const folder = files.stat(folderOf(path));
    const found = (folder && folderProblem(folderOf(path), folder)) ?? linkProblem(files, path);
    return found === undefined ? readSpecFile(files, path, stat) : bad(found);
  } catch (e) {
    return bad(failed(path, e));
  }
}

/**
 * One spec file, checked.
 * @throws SluiceError E_CDI_READ, E_CDI_UNTRUSTED, E_CDI_TOO_LARGE, E_CDI_SYNTAX, E_CDI_SPEC, E_CDI_VERSION or
 * E_CDI_NAME, with the file and the JSON pointer
 */
export function loadSpec(files: Files, path: string): Spec {
  const file = checkSpecFile(files, path);
  if (file.spec === undefined) throw fileError(file);
  return file.spec;
}
