// The live page: a face, a voice, and how it runs.

import { Cropper } from "./cropper.js";
import { paint, Player } from "./player.js";
import { Plot } from "./plot.js";
import { Stream } from "./stream.js";
import { feed, Microphone, samplesOf } from "./voices.js";

const BASE = new URL(".", location.href); // the page may lie below another application
const FPS = 25;
const RATES = [8000, 96000]; // that a server takes
const VOICES = ["interrupt", "mic", "speech", "file"]; // controls of an open session
const $ = (name) => document.getElementById(name);
const token = new URLSearchParams(location.search).get("token") || "";
const plot = new Plot($("plot"));

let audio = null; // AudioContext, from the first session on
let stream = null; // the open session
let player = null; // of the open session
let microphone = null; // while it is on
let sending = 0; // the number of the latest voice; what belongs to an earlier one stops
let queued = 0; // seconds that wait at the server
let first = null; // ms
let uploads = 0;
let turn = Promise.resolve();

function tell(text) {
  $("status").textContent = text;
}

function address(path) {
  const url = new URL(path, BASE);
  if (token) url.searchParams.set("token", token);
  return url.href;
}

// Start, stop and another face, one after the other, however fast they are asked for.
function inTurn(work) {
  turn = turn.then(work).catch((error) => left(`It did not work: ${error.message}`));
  return turn;
}

// -- faces

async function loadFaces() {
  const answer = await fetch(address("v1/avatars")).catch(() => null);
  if (!answer?.ok) {
    const wanted = token ? "The server takes another token than the one in this address." : "The server wants a token.";
    return tell(answer?.status === 403 ? `${wanted} Open this page with ?token=... behind its address.` : "The server does not answer.");
  }
  const { avatars } = await answer.json();
  avatars.forEach((name, k) => addFace(name, name.replaceAll("_", " "), k === 0));
  $("start").disabled = false;
  tell("Choose a face and press Start.");
}

function addFace(name, words, chosen) {
  const label = document.createElement("label");
  const radio = document.createElement("input");
  const picture = document.createElement("img");
  Object.assign(radio, { type: "radio", name: "face", value: name, checked: chosen });
  Object.assign(picture, { src: address(`v1/avatars/${encodeURIComponent(name)}/picture`), alt: words });
  radio.addEventListener("change", choose);
  label.append(radio, picture);
  $("faces").append(label);
  if (chosen) show(picture);
}

function chosenFace() {
  return document.querySelector("#faces input:checked");
}

function choose() {
  if (!stream) return show(chosenFace().nextElementSibling);
  return inTurn(async () => {
    if (!stream || stream.avatar === chosenFace().value) return;
    await stop();
    await start();
  });
}

async function show(picture) {
  await picture.decode().catch(() => {});
  if (stream || !picture.naturalWidth || picture.previousElementSibling !== chosenFace()) return;
  paint($("face").getContext("2d"), picture, picture.naturalWidth, picture.naturalHeight);
}

const cropper = new Cropper($("cropper"), async (file, crop) => {
  tell("The photo is being prepared ...");
  const answer = await fetch(address(`v1/avatars?crop=${crop.join(",")}`), { method: "POST", body: file }).catch(() => null);
  const found = await answer?.json().catch(() => null);
  if (!answer?.ok) return tell(found?.message ?? "The server did not take the photo.");
  uploads += 1;
  addFace(found.avatar, uploads === 1 ? "your photo" : `your photo ${uploads}`, true);
  tell("The photo is ready.");
  if (stream) choose();
});

$("photo").addEventListener("change", async ({ target }) => {
  const [file] = target.files;
  if (file) await cropper.open(file).catch(() => tell("That file is no picture that this browser reads."));
  target.value = ""; // so that the same file can be chosen again
});

// -- the session

async function openAudio() {
  let opened = new AudioContext({ latencyHint: "interactive" });
  if (opened.sampleRate < RATES[0] || opened.sampleRate > RATES[1]) opened = new AudioContext({ sampleRate: 48000 });
  if (!opened.audioWorklet) throw new Error("a browser plays this sound only on pages of its own machine and of https");
  await opened.audioWorklet.addModule("worklets.js");
  return opened;
}

async function start() {
  if (!chosenFace()) return tell("Choose a face first.");
  tell("Connecting ...");
  audio ??= await openAudio();
  await audio.resume();
  first = null;
  queued = 0;
  plot.clear();
  const ours = new Player(audio, $("face"), spoke);
  const mine = new Stream(address("v1/avatar/stream"), chosenFace().value, audio.sampleRate, {
    ready,
    frame: (frame) => mine === stream && ours.add(frame),
    said: (message) => mine === stream && said(message),
    ended: (reason) => mine === stream && left(reason),
  });
  [stream, player] = [mine, ours];
  $("start").textContent = "Stop";
}

function ready() {
  for (const name of VOICES) $(name).disabled = false;
  tell("The face listens. Speak, or play something.");
}

// The session has ended, whoever has ended it.
function left(reason) {
  quiet();
  player?.close();
  stream = player = null;
  $("start").textContent = "Start";
  for (const name of VOICES) $(name).disabled = true;
  tell(reason || "Stopped.");
}

async function stop() {
  const closing = stream;
  left("");
  await closing?.stop();
}

function said(message) {
  // what we have just sent may not be in it yet; a second plays no more than a second
  if (message.type === "stats") queued = Math.max(message.queued, queued - 1.2);
  if (message.type === "playback.finished" && !message.interrupted) tell("The face has finished.");
}

function spoke(ms) {
  first = ms;
  tell(microphone ? "The face follows your microphone." : "The face speaks.");
}

$("start").addEventListener("click", () => inTurn(() => (stream ? stop() : start())));

// -- voices

// No more sound comes from this page.
function quiet() {
  sending += 1;
  microphone?.close();
  microphone = null;
  $("mic").setAttribute("aria-pressed", "false");
}

// What is being said ends now, and so does what waits to be said.
function hush() {
  player.hush();
  stream.interrupt();
  queued = 0;
}

// A new voice: the one before gives way. Returns: a function that pushes its sound, until another one comes.
function voice() {
  quiet();
  if (stream.busy) hush();
  const number = sending;
  let begun = false;
  const push = (samples) => {
    if (number !== sending || !stream) return;
    if (!begun) player.ask(stream.last);
    begun = true;
    stream.push(samples);
    queued += samples.length / audio.sampleRate;
  };
  return { push, goOn: () => number === sending && stream !== null, queued: () => queued };
}

async function send(data) {
  const samples = await samplesOf(audio, data);
  if (!stream) return;
  const from = voice();
  tell("The sound is on its way.");
  if (await feed(samples, audio.sampleRate, from)) stream.end("file");
}

function sendFile(file) {
  file.arrayBuffer().then(send).catch(() => tell("That file is no sound that this browser reads."));
}

$("file").addEventListener("change", ({ target }) => {
  if (target.files[0]) sendFile(target.files[0]);
  target.value = "";
});
$("speech").addEventListener("click", async () => {
  const answer = await fetch(address("v1/speech")).catch(() => null);
  if (!answer?.ok) return tell("The server did not send its speech.");
  await send(await answer.arrayBuffer());
});
for (const kind of ["dragover", "drop", "dragleave"]) {
  $("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind !== "drop" || !event.dataTransfer.files[0]) return;
    if (stream) sendFile(event.dataTransfer.files[0]);
    else tell("Press Start first.");
  });
}

async function micOn() {
  const from = voice();
  const opened = await Microphone.open(audio, from.push);
  if (!from.goOn()) return opened.close(); // another voice came while the browser asked
  microphone = opened;
  $("mic").setAttribute("aria-pressed", "true");
  tell("The microphone is on.");
}

function micOff() {
  quiet();
  stream.end("microphone");
  tell("The microphone is off.");
}

$("mic").addEventListener("click", () =>
  microphone ? micOff() : micOn().catch(() => tell("The browser gives no microphone to this page.")),
);
$("interrupt").addEventListener("click", () => {
  if (!microphone) quiet(); // a visitor who speaks goes on speaking
  hush();
  tell("Interrupted.");
});

// -- numbers

setInterval(() => {
  const { fps, apart } = player?.numbers ?? {};
  const buffer = player ? (player.waiting / FPS) * 1000 : 0;
  if (player) plot.add(fps, buffer / 1000, player.held);
  const put = (name, value, unit = "") => ($(name).textContent = value == null ? "\u2013" : `${Math.round(value)}${unit}`);
  put("first", first, " ms");
  put("fps", fps);
  put("buffer", player && buffer, " ms");
  put("held", player?.held);
  put("gaps", player?.gaps);
  put("apart", apart, " ms");
}, 500);

loadFaces();
