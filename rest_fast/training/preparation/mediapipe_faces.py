"""Runs in the Python that has mediapipe, never in ours: pictures on standard input, faces on standard output.

One picture is two little-endian uint32, height and width, and height x width x 3 bytes of RGB. The answer is one line
of JSON: for each face the extremes [left, top, right, bottom] of its landmarks in pixels. The first line says that the
models are loaded. Imports nothing of rest_fast.
"""

import importlib
import json
import struct
import sys

WIDER = 2.0  # sides of the detector's box that the mesh looks at: its models were trained on such crops


def main() -> None:
    np, mediapipe = importlib.import_module("numpy"), importlib.import_module("mediapipe")
    solutions = mediapipe.solutions
    # full range: finds faces up to 5 m away, not only those of a selfie
    detector = solutions.face_detection.FaceDetection(model_selection=1, min_detection_confidence=0.5)
    mesh = solutions.face_mesh.FaceMesh(static_image_mode=True, max_num_faces=1)  # no memory between pictures
    answer({"mediapipe": mediapipe.__version__})
    while len(head := sys.stdin.buffer.read(8)) == 8:
        height, width = struct.unpack("<II", head)
        data = sys.stdin.buffer.read(height * width * 3)
        picture = np.frombuffer(data, np.uint8).reshape(height, width, 3)
        found = detector.process(picture).detections or []
        boxes = (face_of(np, mesh, picture, d.location_data.relative_bounding_box) for d in found)
        answer([box for box in boxes if box])


def face_of(np, mesh, picture, box):
    """Extremes of one face's landmarks; None where the mesh sees no face in the detector's box."""
    height, width = picture.shape[:2]
    x, y = (box.xmin + box.width / 2) * width, (box.ymin + box.height / 2) * height
    half = WIDER / 2 * max(box.width * width, box.height * height)
    left, top = max(0, int(x - half)), max(0, int(y - half))
    part = np.ascontiguousarray(picture[top : max(0, int(y + half)), left : max(0, int(x + half))])
    found = mesh.process(part).multi_face_landmarks if part.size else None
    if not found:
        return None
    xs = [left + p.x * part.shape[1] for p in found[0].landmark]
    ys = [top + p.y * part.shape[0] for p in found[0].landmark]
    return [min(xs), min(ys), max(xs), max(ys)]


def answer(value) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
