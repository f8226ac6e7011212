/// A shared object without a block in it.
extern const int krait_has_no_block_here;
const int krait_has_no_block_here = 1;
