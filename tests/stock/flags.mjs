// Flags as stock OpenFeature clients see them: a server's client, which asks for one flag at a time, and a browser's, which
// polls for all.

import { OFREPProvider } from '@openfeature/ofrep-provider';
import { OFREPWebProvider } from '@openfeature/ofrep-web-provider';
import { OpenFeature as Backend } from '@openfeature/server-sdk';
import { OpenFeature as Browser } from '@openfeature/web-sdk';

import { answer } from './answer.mjs';

/** How often a browser's client asks; as fast as a test may want it. */
const POLL_MS = 50;

/** The statuses that the browser's clients were answered with, by their names. */
const answered = {};

function headers(key) {
  return [['Authorization', `Bearer ${key}`]];
}

/** Evaluate a flag with the method for its kind of value. */
function details(client, flag, fallback, context) {
  const kinds = { boolean: 'Boolean', string: 'String', number: 'Number', object: 'Object' };
  return client[`get${kinds[typeof fallback]}Details`](flag, fallback, context);
}

await answer({
  /** A server's client asks for a flag. */
  async ask({ url, key, flag, fallback, context }) {
    await Backend.setProviderAndWait(new OFREPProvider({ baseUrl: url, headers: headers(key) }));
    return details(Backend.getClient(), flag, fallback, context);
  },
  /** A browser's client of this name starts to watch the flags; its provider's status once that is settled. */
  async watch({ name, url, key, context }) {
    const statuses = (answered[name] = []);
    const fetchImplementation = async (request, options) => {
      const response = await fetch(request, options);
      statuses.push(response.status);
      return response;
    };
    await Browser.setContext(name, context);
    const options = { baseUrl: url, headers: headers(key), pollInterval: POLL_MS, cacheMode: 'disabled', fetchImplementation };
    // The status tells a failure too.
    await Browser.setProviderAndWait(name, new OFREPWebProvider(options)).catch(() => {});
    return Browser.getClient(name).providerStatus;
  },
  /** What a browser's client that watches believes of a flag, and how it was answered so far. */
  async see({ name, flag, fallback }) {
    return { ...details(Browser.getClient(name), flag, fallback), answered: answered[name] };
  },
});
