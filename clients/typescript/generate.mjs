// Generates src/gen from the descriptor set of the service with protoc-gen-es. `npm run build` runs it.
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import {
  CodeGeneratorRequestSchema,
  CodeGeneratorResponseSchema,
  FileDescriptorSetSchema,
} from "@bufbuild/protobuf/wkt";

const DESCRIPTOR_SET = "../../gen/evershell/edge/workspace.binpb";
// The messages of google.protobuf are in @bufbuild/protobuf.
const LEFT_OUT = /^(google\/protobuf|evershell\/agent)\//;

const set = fromBinary(FileDescriptorSetSchema, readFileSync(DESCRIPTOR_SET));
const request = create(CodeGeneratorRequestSchema, {
  parameter: "target=ts,import_extension=js",
  protoFile: set.file,
  fileToGenerate: set.file.map((file) => file.name).filter((name) => !LEFT_OUT.test(name)),
});
const output = execFileSync(process.execPath, ["node_modules/.bin/protoc-gen-es"], {
  input: toBinary(CodeGeneratorRequestSchema, request),
  maxBuffer: 2 ** 26,
});
rmSync("src/gen", { recursive: true, force: true });
for (const { name, content } of fromBinary(CodeGeneratorResponseSchema, output).file) {
  mkdirSync(dirname(`src/gen/${name}`), { recursive: true });
  writeFileSync(`src/gen/${name}`, content);
}
