// entry is the program inside the tests' images: static, so that it runs from scratch, and without a network.
//
//	entry             prints a line, and the greeting that another layer holds
//	entry fill DIR N  writes N numbered files of 1 MiB into DIR, saying each, for a test that cuts the power
package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
)

func main() {
	if len(os.Args) == 4 && os.Args[1] == "fill" {
		n, _ := strconv.Atoi(os.Args[3])
		for i := range n {
			name := fmt.Sprintf("%s/%06d", os.Args[2], i)
			if err := os.WriteFile(name, bytes.Repeat([]byte{byte(i)}, 1<<20), 0o644); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			fmt.Println("wrote", name)
		}
		return
	}
	fmt.Println("entry runs")
	greeting, err := os.ReadFile("/etc/greeting")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Stdout.Write(greeting)
}
