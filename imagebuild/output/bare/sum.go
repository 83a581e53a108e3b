package bare

import (
	"crypto/sha256"
	"fmt"
	"path"
	"strings"
)

// SumName is where the sum of an output lies: beside it, with .sha256 behind its whole name.
func SumName(output string) string { return output + ".sha256" }

var sumEscapes = strings.NewReplacer("\\", `\\`, "\n", `\n`, "\r", `\r`)

// SumLine is the text of a file for `sha256sum -c`, run in the output's folder: the sum, two spaces and the output's
// name without its folders. Like sha256sum it escapes a name with a backslash or a line's end, and says so by a
// backslash before the sum.
func SumLine(output string, sum [sha256.Size]byte) string {
	name := path.Base(output)
	escaped := sumEscapes.Replace(name)
	mark := ""
	if escaped != name {
		mark = `\`
	}
	return fmt.Sprintf("%s%x  %s\n", mark, sum, escaped)
}
