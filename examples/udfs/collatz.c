// The Collatz rule: halve an even number, triple an odd one and add one, until it is 1.
#include <stdint.h>

// How many steps n takes. Nobody thought of 0, which stays 0: that call never ends.
__attribute__((export_name("steps")))
int64_t steps(int64_t n) {
    int64_t count = 0;
    while (n != 1) {
        n = n % 2 == 0 ? n / 2 : 3 * n + 1;
        count++;
    }
    return count;
}

// The number from 1 to limit that takes the most steps: as much work as you like.
__attribute__((export_name("longest")))
int64_t longest(int64_t limit) {
    int64_t best = 1, most = 0;
    for (int64_t n = 1; n <= limit; n++) {
        int64_t count = steps(n);
        if (count > most) {
            most = count;
            best = n;
        }
    }
    return best;
}
