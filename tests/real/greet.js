// A plugin in JavaScript: counts its visits and says so.
import * as kv from 'chalet:platform/kv@0.1.0';

// The engine has no TextEncoder.
const bytes = (text) => Uint8Array.from(text, (character) => character.charCodeAt(0));

export const httpTrigger = {
  handle(request) {
    kv.increment('visits', 'javascript', 1);
    const visits = kv.counter('visits', 'javascript');
    const text = `hello from JavaScript at ${request.path}, visit ${visits}`;
    return { status: 200, headers: [['content-type', bytes('text/plain')]], body: bytes(text) };
  },
};
