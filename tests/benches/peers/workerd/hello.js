// Answers `hello`, as tests/guests/hello does to Chalet.
export default {
  fetch() {
    return new Response("hello", { headers: { "content-type": "text/plain; charset=utf-8" } });
  },
};
