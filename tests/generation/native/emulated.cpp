// Runs kernels of another processor: calls come in a file, what they wrote goes into another.
//
// A call is a name's length and the name, the number of arguments, and each argument: 'p' with a
// length and so many bytes, 'n' (a null pointer), 'i', 'q' or 'f' with its number. After the call
// all bytes are written out, one argument after another.

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "kernels.cpp"

namespace {

struct Argument {
    char kind;
    std::vector<char> bytes;
    int64_t whole = 0;
    float real = 0;
};

template <typename T>
bool read(FILE* file, T* to) { return std::fread(to, sizeof(T), 1, file) == 1; }

std::vector<Argument> arguments;

void* p(int i) { return arguments[i].kind == 'n' ? nullptr : arguments[i].bytes.data(); }
int n(int i) { return int(arguments[i].whole); }
float f(int i) { return arguments[i].real; }
template <typename T> T* at(int i) { return static_cast<T*>(p(i)); }

void attend() {
    Attend<bf16> a{at<bf16>(0), at<float>(1), at<float>(2), at<bf16>(3), at<bf16>(4),
                   at<int32_t>(5), at<int32_t>(6), at<int32_t>(7), at<bf16>(8)};
    a.tokens = n(9), a.heads = n(10), a.shared = n(11), a.width = n(12), a.page = n(13);
    a.row_pages = n(14), a.window = n(15), a.scale = f(16);
    lmsmith_attend_bf16(&a, n(17));
}

bool call(const std::string& name) {
    if (name == "lay_out") lmsmith_lay_out(p(0), p(1), n(2), n(3), n(4), n(5));
    else if (name == "linear") {
        const Matrix matrix{p(1),  at<float>(2), at<float>(3), at<uint16_t>(4), at<int16_t>(5),
                            nullptr, n(8), n(9), n(10), n(11)};
        lmsmith_linear(at<bf16>(0), &matrix, p(6), n(7), n(12), n(13));
    }
    else if (name == "norm")
        lmsmith_norm(at<float>(0), at<float>(1), at<float>(2), p(3), n(4), n(5), f(6), n(7), n(8),
                     n(9));
    else if (name == "gate") lmsmith_gate(at<bf16>(0), at<bf16>(1), n(2), n(3), n(4));
    else if (name == "gelu") lmsmith_gelu(at<bf16>(0), at<bf16>(1), n(2), n(3), n(4));
    else if (name == "log_sums")
        lmsmith_log_sums(p(0), at<float>(1), at<int64_t>(2), n(3), n(4), n(5), n(6));
    else if (name == "attend") attend();
    else return false;
    return true;
}

}  // namespace

int main(int, char** words) {
    FILE *in = std::fopen(words[1], "rb"), *out = std::fopen(words[2], "wb");
    if (!in || !out) return 2;
    uint32_t length, count;
    while (read(in, &length)) {
        std::string name(length, ' ');
        if (std::fread(&name[0], 1, length, in) != length || !read(in, &count)) return 3;
        arguments.assign(count, {});
        for (Argument& each : arguments) {
            if (!read(in, &each.kind)) return 3;
            if (each.kind == 'f' && !read(in, &each.real)) return 3;
            if (each.kind == 'i' && !read(in, &each.whole)) return 3;
            if (each.kind != 'p') continue;
            uint64_t size;
            if (!read(in, &size)) return 3;
            each.bytes.resize(size);
            if (std::fread(each.bytes.data(), 1, size, in) != size) return 3;
        }
        if (!call(name)) return 4;
        for (const Argument& each : arguments)
            if (each.kind == 'p') std::fwrite(each.bytes.data(), 1, each.bytes.size(), out);
    }
    return std::fclose(out);
}
