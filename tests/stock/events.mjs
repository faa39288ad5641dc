// CloudEvents as the CloudEvents project's own library emits them.

import { CloudEvent, emitterFor, httpTransport } from 'cloudevents';

import { answer } from './answer.mjs';

await answer({
  /** Emit an event in a content mode, `binary` or `structured`; the answer's body. */
  async emit({ url, key, mode, event }) {
    const emit = emitterFor(httpTransport(url), { mode });
    const { body } = await emit(new CloudEvent(event), { headers: { authorization: `Bearer ${key}` } });
    return JSON.parse(body);
  },
});
