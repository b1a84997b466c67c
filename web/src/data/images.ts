/* Pictures from files, as data URLs no larger than a model can look at. */

const SIDE = 2048; // pixels; the largest canvas of the models served is below it
const BYTES = 4 * 2 ** 20;

/** Throws an Error that says why a file cannot be used. */
export async function pictures(files: Iterable<File>): Promise<string[]> {
  return Promise.all([...files].filter((file) => file.type.startsWith("image/")).map(picture));
}

async function picture(file: File): Promise<string> {
  let bitmap: ImageBitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name} is not an image that this browser can read`);
  }
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const asItIs = ["image/png", "image/jpeg", "image/webp"].includes(file.type) && file.size <= BYTES;
  if (scale === 1 && asItIs) return dataUrl(file);
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(bitmap.width * scale);
  canvas.height = Math.round(bitmap.height * scale);
  canvas.getContext("2d")!.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.92);
}

function dataUrl(file: File): Promise<string> {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result as string);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
