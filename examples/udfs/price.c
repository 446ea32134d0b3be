// What an order costs, in cents: the application knows the prices, this rule gives the discount.
#include <stdint.h>

// A host function: Python looks the price of one piece up.
__attribute__((import_module("shop"), import_name("unit_price")))
extern int64_t unit_price(int64_t product);

// Ten pieces or more are 10 % cheaper, a hundred or more 25 %; halves of a cent are dropped.
__attribute__((export_name("order_price")))
int64_t order_price(int64_t product, int64_t pieces) {
    int64_t percent = pieces >= 100 ? 75 : pieces >= 10 ? 90 : 100;
    return unit_price(product) * pieces * percent / 100;
}
