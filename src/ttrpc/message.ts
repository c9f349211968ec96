/** A method's own messages, as the payload of a request, a response or data. */

import {
  create,
  type DescMessage,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { Code, TtrpcError, textOf } from "./status.ts";

/** @throws TtrpcError Internal: it has a value that its type does not hold */
export function encode<T extends DescMessage>(schema: T, message: MessageInitShape<T>): Uint8Array {
  try {
    return toBinary(schema, create(schema, message));
  } catch (thrown) {
    throw new TtrpcError(Code.Internal, `cannot encode a ${schema.typeName}: ${textOf(thrown)}`);
  }
}

/** @throws TtrpcError Internal */
export function decode<T extends DescMessage>(schema: T, payload: Uint8Array): MessageShape<T> {
  try {
    return fromBinary(schema, payload);
  } catch (thrown) {
    throw new TtrpcError(Code.Internal, `cannot decode a ${schema.typeName}: ${textOf(thrown)}`);
  }
}
