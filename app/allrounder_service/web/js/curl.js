// The request as a command that works when it is pasted into a shell.

import { base64 } from "./api.js";

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** {command, note}; `image` as PictureChoice gives it, a pasted one travels inside the command. */
export async function curlCommand({ image, question, budget, withKey, origin = location.origin }) {
  const { before, file, note, after = "" } = await source(image, origin);
  const words = [
    `curl -s ${origin}/v1/chat`,
    ...(withKey ? ['-H "Authorization: Bearer $ALLROUNDER_API_KEY"'] : []),
    `-F ${file}`,
    `--form-string question=${quoted(question)}`,
    typeof budget === "number" ? `-F budget=${budget}` : `--form-string budget=${quoted(JSON.stringify(budget))}`,
  ];
  return { command: before + words.join(" \\\n  ") + after, note };
}

async function source(image, origin) {
  if (image.source === "example") {
    return { before: `curl -s ${origin}${image.path} | \\\n`, file: "image=@-", note: "" };
  }
  if (image.source === "clipboard") {
    return {
      before: "base64 -d <<'IMAGE' | \\\n",
      file: "image=@-",
      after: `\n${await lines(image.blob)}\nIMAGE`,
      note: "A pasted picture has no file, so the command carries it.",
    };
  }
  // curl takes a quoted name, so that commas and semicolons in it do not end it.
  const name = `"${image.name.replace(/[\\"]/g, "\\$&")}"`;
  return { before: "", file: `image=@${quoted(name)}`, note: `Run it in the folder that holds ${image.name}.` };
}

async function lines(blob) {
  return ((await base64(blob)).match(/.{1,76}/g) ?? []).join("\n");
}
