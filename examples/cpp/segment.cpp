// Segments an image by an engine of `fastfss export --aot-inductor`, without Python.
//
//   segment ENGINE IMAGE.ppm MASK.pgm TASK.safetensors...
//
// ENGINE is the folder, TASK a class saved by `fastfss predict --save-task` or Task.save, one a
// way. The image is a binary PPM (P6, 8 bits), the mask a binary PGM: 0 background, n the n-th
// task.
#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <iterator>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace {

using torch::inductor::AOTIModelPackageLoader;
using Metadata = std::unordered_map<std::string, std::string>;

std::vector<std::string> parts_of(const std::string& list) {
  std::vector<std::string> parts;
  std::stringstream stream(list);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

std::vector<double> numbers_of(const std::string& list) {
  std::vector<double> numbers;
  for (const std::string& part : parts_of(list)) numbers.push_back(std::stod(part));
  return numbers;
}

std::string content_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + ": cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

// The header of a PPM: three numbers, with comments between them.
at::Tensor read_ppm(const std::string& path) {  // uint8 (1, 3, H, W)
  const std::string content = content_of(path);
  const std::regex form(
      R"(^P6(?:\s+|#[^\n]*\n)+(\d+)(?:\s+|#[^\n]*\n)+(\d+)(?:\s+|#[^\n]*\n)+255\s)");
  std::smatch found;
  if (!std::regex_search(content, found, form)) {
    throw std::runtime_error(path + ": expected a binary PPM of 8 bits (P6)");
  }
  const int64_t width = std::stoll(found[1]), height = std::stoll(found[2]);
  const auto start = static_cast<size_t>(found[0].length());
  if (content.size() < start + static_cast<size_t>(3 * width * height)) {
    throw std::runtime_error(path + ": truncated");
  }
  at::Tensor image = at::empty({1, height, width, 3}, at::kByte);
  std::memcpy(image.data_ptr(), content.data() + start, static_cast<size_t>(image.numel()));
  return image.permute({0, 3, 1, 2}).contiguous();
}

void write_pgm(const std::string& path, const at::Tensor& labels) {  // uint8 (H, W)
  std::ofstream file(path, std::ios::binary);
  file << "P5\n" << labels.size(1) << ' ' << labels.size(0) << "\n255\n";
  file.write(static_cast<const char*>(labels.data_ptr()), labels.numel());
  if (!file) throw std::runtime_error(path + ": cannot be written");
}

// A Task's tensors in the engine's order. A safetensors file is the length of a JSON header, the
// header, and the tensors' bytes.
std::vector<at::Tensor> read_task(const std::string& path, const Metadata& about) {
  const std::string content = content_of(path);
  uint64_t length = 0;
  if (content.size() > 8) std::memcpy(&length, content.data(), 8);
  if (length == 0 || length > content.size() - 8) {
    throw std::runtime_error(path + ": expected a safetensors file");
  }
  const std::string header = content.substr(8, length);
  if (header.find('"' + about.at("fastfss_method") + '"') == std::string::npos ||
      header.find(about.at("fastfss_weights")) == std::string::npos) {
    throw std::runtime_error(path + ": a task of another method or of other weights than " +
                             about.at("fastfss_method") + ", " + about.at("fastfss_weights"));
  }
  const int64_t shots = std::stoll(about.at("fastfss_shots"));
  std::vector<at::Tensor> tensors;
  for (const std::string& name : parts_of(about.at("fastfss_task"))) {
    const std::string escaped = std::regex_replace(name, std::regex(R"(\.)"), R"(\.)");
    const std::regex entry("\"" + escaped + R"("\s*:\s*\{([^}]*)\})");
    std::smatch found, dtype, shape, range;
    const std::regex float32(R"("dtype"\s*:\s*"F32")"), sides(R"("shape"\s*:\s*\[([\d,\s]*)\])"),
        bytes(R"("data_offsets"\s*:\s*\[\s*(\d+)\s*,\s*(\d+)\s*\])");
    if (!std::regex_search(header, found, entry)) {
      throw std::runtime_error(path + ": has no tensor " + name);
    }
    const std::string said = found[1];
    if (!std::regex_search(said, dtype, float32) || !std::regex_search(said, shape, sides) ||
        !std::regex_search(said, range, bytes)) {
      throw std::runtime_error(path + ": tensor " + name + " is not float32");
    }
    std::vector<int64_t> size;
    for (const double side : numbers_of(shape[1])) size.push_back(static_cast<int64_t>(side));
    at::Tensor tensor = at::empty(size, at::kFloat);
    const size_t begin = std::stoull(range[1]), end = std::stoull(range[2]);
    if (end - begin != tensor.nbytes() || 8 + length + end > content.size()) {
      throw std::runtime_error(path + ": truncated");
    }
    std::memcpy(tensor.data_ptr(), content.data() + 8 + length + begin, tensor.nbytes());
    if (size.size() < 2 || size[0] != 1 || shots % size[1] != 0) {
      throw std::runtime_error(path + ": the engine takes " + std::to_string(shots) + " shots");
    }
    // Fewer shots are taken several times, which changes no mean, maximum or vote.
    std::vector<int64_t> times(size.size(), 1);
    times[1] = shots / size[1];
    tensors.push_back(tensor.repeat(times));
  }
  return tensors;
}

// What `Engine.prepare` does: to the engine's size, antialiased, then normalised.
at::Tensor prepared(const at::Tensor& image, const Metadata& about) {
  if (about.at("fastfss_frame") == "letterbox") {
    throw std::runtime_error("this program stretches images; the engine wants them letterboxed");
  }
  const std::vector<double> size = numbers_of(about.at("fastfss_size"));
  const std::vector<double> mean = numbers_of(about.at("fastfss_mean"));
  const std::vector<double> std = numbers_of(about.at("fastfss_std"));
  const std::vector<int64_t> sides = {static_cast<int64_t>(size[0]), static_cast<int64_t>(size[1])};
  at::Tensor pixels = image.to(at::kFloat).div(255);
  if (pixels.size(2) != sides[0] || pixels.size(3) != sides[1]) {
    pixels = at::_upsample_bilinear2d_aa(pixels, sides, /*align_corners=*/false);
  }
  const auto channels = [](const std::vector<double>& values) {
    return at::tensor(values, at::kDouble).to(at::kFloat).view({1, 3, 1, 1});
  };
  const double scale = std::stod(about.at("fastfss_scale"));
  pixels = (pixels * scale - channels(mean)) / channels(std);
  return about.at("fastfss_bgr") == "1" ? pixels.flip(1).contiguous() : pixels.contiguous();
}

double milliseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

void segment(const std::string& engine, const std::string& image_path, const std::string& mask_path,
             const std::vector<std::string>& task_paths) {
  AOTIModelPackageLoader encode(engine + "/encode.pt2"), match(engine + "/match.pt2");
  const Metadata about = encode.get_metadata();
  if (task_paths.size() != std::stoull(about.at("fastfss_ways"))) {
    throw std::runtime_error("the engine takes " + about.at("fastfss_ways") + " tasks, got " +
                             std::to_string(task_paths.size()));
  }
  std::vector<at::Tensor> of_tasks;
  for (const std::string& path : task_paths) {
    for (at::Tensor& tensor : read_task(path, about)) of_tasks.push_back(std::move(tensor));
  }
  const at::Tensor image = read_ppm(image_path);

  const auto started = std::chrono::steady_clock::now();
  std::vector<at::Tensor> inputs = encode.run({prepared(image, about)});
  inputs.insert(inputs.end(), of_tasks.begin(), of_tasks.end());
  at::Tensor logits = match.run(inputs).at(0);
  const at::IntArrayRef size = image.sizes().slice(2);
  if (logits.sizes().slice(2) != size) {
    const bool corners = about.at("fastfss_align_corners") == "1";
    logits = at::upsample_bilinear2d(logits, size, corners);
  }
  const at::Tensor labels = logits.argmax(1)[0].to(at::kByte).contiguous();
  std::printf("%s: %.1f ms, %.2f %% of the pixels in a class\n", image_path.c_str(),
              milliseconds_since(started), 100 * (labels > 0).to(at::kFloat).mean().item<double>());
  write_pgm(mask_path, labels);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) {
    std::fprintf(stderr, "usage: segment ENGINE IMAGE.ppm MASK.pgm TASK.safetensors...\n");
    return 2;
  }
  try {
    segment(argv[1], argv[2], argv[3], {argv + 4, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
  return 0;
}
