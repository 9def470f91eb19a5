// What a test sees of the live page without asking the page: the canvas's pixels at each refresh of the screen, the
// frame that the audio worklet says it has begun, the sound that it makes, and the messages of the socket.
window.tap = { refreshes: [], begun: [], pts: {}, sent: null, audio: null, analyser: null };

window.WebSocket = class extends WebSocket {
  constructor(...about) {
    super(...about);
    this.addEventListener("message", ({ data }) => {
      if (typeof data === "string") return;
      const header = new DataView(data);
      tap.pts[header.getUint32(16, true)] = header.getFloat64(20, true);
    });
  }

  send(data) {
    if (typeof data !== "string") tap.sent ??= performance.now();
    super.send(data);
  }
};

window.AudioWorkletNode = class extends AudioWorkletNode {
  constructor(audio, name, options) {
    super(audio, name, options);
    if (name !== "player") return;
    tap.audio = audio;
    tap.analyser = new AnalyserNode(audio, { fftSize: 1024 });
    this.connect(tap.analyser);
    this.port.addEventListener("message", ({ data }) => data.index !== undefined && tap.begun.push([data.index, data.time]));
  }
};

const SOUND = new Float32Array(1024);
const FIELDS = 8; // of a board along one side

function look() {
  requestAnimationFrame(() => setTimeout(look)); // behind what the page draws at this refresh
  if (!tap.analyser) return;
  const { canvas } = document.getElementById("face").getContext("2d");
  const side = canvas.width;
  const { data } = canvas.getContext("2d").getImageData(0, 0, side, side);
  const middle = (k) => Math.floor(((k + 0.5) * side) / FIELDS);
  const board = [];
  for (let row = 0; row < FIELDS; row += 1) {
    for (let column = 0; column < FIELDS; column += 1) board.push(data[4 * (middle(row) * side + middle(column))]);
  }
  tap.analyser.getFloatTimeDomainData(SOUND);
  const loud = Math.sqrt(SOUND.reduce((sum, value) => sum + value * value, 0) / SOUND.length);
  const clock = tap.audio.currentTime - (tap.audio.outputLatency || 0);
  tap.refreshes.push({ at: performance.now(), clock, board, loud });
}
look();
